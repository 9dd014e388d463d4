"""Delivery of alerts to a webhook, bounded in rate and attempts; waiting alerts are kept in the database."""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque

import httpx
import structlog
from mor_core.certificates import client_context
from mor_core.failures import describe_failure
from mor_core.proxies import proxy_of

from mor_trainer.config import ControlSettings
from mor_trainer.control.alert_store import LONGEST_PAUSE_S, AlertStore

_CHECK_S = 0.5
"""Pause between checks for an alert that is due: a person does not notice it, and the query costs nothing."""
_MINUTE_S = 60.0

log = structlog.get_logger(__name__)


class Webhook:
    """Sender that posts each alert once, as JSON, and repeats failed attempts after growing, jittered pauses."""

    def __init__(self, settings: ControlSettings, alerts: AlertStore) -> None:
        self._settings = settings
        self._alerts = alerts
        self._sent: deque[float] = deque()

    async def run(self) -> None:
        """Send alerts until cancelled. Returns at once where no webhook is set."""
        url = self._settings.alert_webhook_url
        if url is None:
            return
        token = self._settings.alert_webhook_token.get_secret_value()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout, proxy = self._settings.alert_webhook_timeout_s, proxy_of(self._settings.alert_webhook_proxy)
        async with httpx.AsyncClient(
            headers=headers, timeout=timeout, proxy=proxy, verify=client_context("SSL_CERT_FILE", None), trust_env=False
        ) as http:
            while True:
                sent = False
                try:
                    sent = self._may_send() and await self._send_next(http, str(url))
                except Exception as error:  # such as a database that a backup holds: the next attempt may succeed
                    log.error("the alerts cannot be sent", exc_info=error)
                if not sent:
                    await asyncio.sleep(_CHECK_S)

    def _may_send(self) -> bool:
        now = time.monotonic()
        while self._sent and self._sent[0] < now - _MINUTE_S:
            self._sent.popleft()
        return len(self._sent) < self._settings.alert_webhook_per_minute

    async def _send_next(self, http: httpx.AsyncClient, url: str) -> bool:
        """Send the alert that is due, if any, and return whether there was one."""
        found = self._alerts.due()
        if found is None:
            return False
        alert, attempts = found
        self._sent.append(time.monotonic())
        try:
            reply = await http.post(url, json={"contract": "mor.alert/1", "alert": alert.model_dump(mode="json")})
            reply.raise_for_status()
        except httpx.HTTPError as error:
            pause = random.uniform(0.5, 1.5) * self._settings.alert_webhook_retry_s * 2.0**attempts
            again_at = time.time() + min(LONGEST_PAUSE_S, pause)
            over = attempts + 1 >= self._settings.alert_webhook_attempts
            self._alerts.mark_failed(alert.id, None if over else again_at)
            log.warning("the webhook did not take an alert", alert=alert.id, gives_up=over, error=_described(error))
        else:
            self._alerts.mark_sent(alert.id)
        return True


def _described(error: httpx.HTTPError) -> str:
    """Describe a failed delivery; httpx quotes the address, whose path or query may be the webhook's secret."""
    if isinstance(error, httpx.HTTPStatusError):
        return f"it answered {error.response.status_code}"
    return describe_failure(error)
