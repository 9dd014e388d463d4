"""Report of this service's limits to run control, so that a run's prompts are checked against them before step 1."""

from __future__ import annotations

import asyncio
import os
import random
import socket

import httpx
import structlog
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.run_status import EngineLimits
from mor_core.service_addresses import CONTROL, other_service
from mor_core.wire import WEIGHTS_FORMAT

from mor_rollout.config import RolloutSettings
from mor_rollout.weights.weights_room import WeightsRoom

_INTERVAL_S = 60.0
"""Seconds between reports; run control forgets a service after ten minutes."""
_TIMEOUT_S = 10.0
"""Longest report, seconds."""

log = structlog.get_logger(__name__)


def engine_name() -> str:
    """Return the name of this service, by which run control and alerts tell it from others."""
    return f"{socket.gethostname()}-{os.getpid()}"


async def report_limits(settings: RolloutSettings) -> None:
    """Report the limits until cancelled. A report that fails is made again; without a token there is none."""
    token = settings.service_token.get_secret_value()
    if not token:
        return
    limits = EngineLimits(
        name=engine_name(),
        model=settings.model,
        max_model_len=settings.max_model_len,
        max_images=settings.max_images,
        max_image_bytes=settings.max_request_bytes,
        dtype=settings.dtype,
        weights_bytes=WeightsRoom(settings).total(),
        weights_format=WEIGHTS_FORMAT,
    )
    failing = False
    async with httpx.AsyncClient(
        base_url=settings.control_url,
        headers={"Authorization": f"Bearer {token}"},
        timeout=_TIMEOUT_S,
        verify=settings.control_tls(),
        trust_env=False,
    ) as http:
        while True:
            try:
                reply = await http.post("/v1/engines", json=limits.model_dump(mode="json"))
                if (other := other_service(reply.headers, CONTROL)) is not None:
                    raise Invalid(f"MOR_CONTROL_URL {settings.control_url}: {other}; correct it")
                reply.raise_for_status()
                failing = False
            except (httpx.HTTPError, Invalid) as error:
                if not failing:  # once for each outage
                    log.warning("run control does not know this service's limits", reason=describe_failure(error))
                failing = True
            await asyncio.sleep(random.uniform(0.8, 1.2) * (_INTERVAL_S / 6 if failing else _INTERVAL_S))
