"""Reliability: a client for which groups wait in vain loses its weight until it answers again.

While a client that holds much of the weight fails, groups wait for it: without the expert they would be rewarded by
clients that know nothing of them. This wait is a budget (``wait_budget``), so that no pattern of failures stops a run.
Once it is spent the client is on probation: called in shadow, without weight, and not part of any quorum.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from mor_core.errors import MorError, NotFound
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK
from redis.exceptions import RedisError

from mor_router.audit import AuditLog
from mor_router.clients.pool import ClientPool
from mor_router.clients.registry import ClientRecord, ClientRegistry
from mor_router.clients.wait_budget import WaitBudget
from mor_router.config import RouterSettings

_REVIEW_S = 10.0
"""Mean seconds between reviews of the unreliable clients: short against the time that they stay on probation."""
_REASON_LENGTH = 500
"""Longest reason, characters; it quotes the client's last error."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ClientWait:
    """Wait of groups for one client whose call failed, while others had scored the groups."""

    past_s: float
    """Seconds for which its call went on after the last other one."""
    coming_s: float
    """Seconds until the next attempt of the groups; 0 where they have a reward without it."""


class Reliability:
    """Waits for each client, and the clients that are on probation because of them."""

    def __init__(self, registry: ClientRegistry, pool: ClientPool, audit: AuditLog, settings: RouterSettings) -> None:
        self._registry = registry
        self._pool = pool
        self._audit = audit
        self._most_s = settings.outage_wait_s
        self._share = settings.outage_share
        self._budgets: dict[str, WaitBudget] = {}

    async def record(self, waits: Mapping[str, ClientWait]) -> None:
        """Count waits that end and begin now; put the clients whose budget is spent on probation."""
        now = time.monotonic()
        spent = []
        for client, wait in waits.items():
            budget = self._budgets.setdefault(client, WaitBudget(self._most_s, self._share))
            budget.spend(now - wait.past_s, now + wait.coming_s)
            if budget.left_s() <= 0:
                spent.append(client)
        for client in spent:
            await self._exclude(client)
        if spent:
            await self._pool.try_refresh()

    async def _exclude(self, client: str) -> None:
        try:
            last = self._pool.last_error(client)
        except KeyError:
            return  # removed meanwhile
        reason = f"unreliable: groups waited {self._most_s:g} s in vain for its scores; its last failure: {last}"
        found = {"state": "probation", "reason": reason[:_REASON_LENGTH], "unreliable_at": SERVER_CLOCK.now()}
        newly = False

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal newly
            newly = record.state == "active"
            return record.model_copy(update=found) if newly else record

        try:
            await self._registry.update(client, change)
        except (MorError, RedisError) as error:  # its budget stays spent, so the next wait tries again
            log.warning(
                "an unreliable client could not be put on probation", client=client, error=describe_failure(error)
            )
            return
        if newly:
            self._audit.record("unreliable", client, "router", state="probation", reason=reason[:_REASON_LENGTH])
            log.warning("a client lost its weight until it is reliable", client=client, reason=reason)

    async def keep_reviewing(self) -> None:
        """Restore clients that have become reliable, until cancelled."""
        while True:
            await asyncio.sleep(random.uniform(0.5, 1.5) * min(_REVIEW_S, self._most_s))
            try:
                await self.review()
            except (MorError, RedisError) as error:
                log.warning("the unreliable clients could not be reviewed", error=describe_failure(error))

    async def review(self) -> None:
        """Restore the clients whose probation has lasted and that answer now."""
        records = self._pool.records
        for name in self._budgets.keys() - records.keys():
            del self._budgets[name]
        for name, record in records.items():
            if record.unreliable_at is not None and self._has_recovered(name, record.unreliable_at):
                await self._restore(name, record.unreliable_at)

    def _has_recovered(self, name: str, since: float) -> bool:
        return SERVER_CLOCK.now() - since >= self._most_s / self._share and self._pool.is_reliable(name)

    async def _restore(self, name: str, since: float) -> None:
        """End a client's probation as unreliable. One that is distrusted as well stays on probation for that."""
        state: str | None = None

        def change(record: ClientRecord) -> ClientRecord:
            nonlocal state
            state = None
            if record.unreliable_at != since:
                return record  # another replica was first
            found: dict[str, object] = {"unreliable_at": None}
            if record.state == "probation" and record.distrusted_at is None:
                found |= {"state": "active", "reason": None}
            restored = record.model_copy(update=found)
            state = restored.state
            return restored

        try:
            await self._registry.update(name, change)
        except NotFound:
            return  # removed meanwhile
        if state is not None:
            self._audit.record("unreliable", name, "router", state=state, reason="answers reliably again")
            log.info("a client answers reliably again", client=name, state=state)
            await self._pool.try_refresh()
