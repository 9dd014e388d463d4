"""Right of one run control to write: a lease on the queue server, and the newest epoch in the database.

The lease keeps a second run control from reading the same streams, and shows when the first is gone. The epoch decides:
each transaction checks it, so that of two run controls that believe they own the history at most one writes. An owner
that loses the queue server goes on, because nobody takes the history from one that lives, unless that one says that it
has no lease and another has.

Each compares times of its own monotonic clock only, and the lease ends by the queue server's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import structlog
from mor_core.endless_keys import LeaseKey, delete_endless
from mor_core.failures import describe_failure
from mor_core.printable import visible
from mor_core.redis_users import CONTROL_LEASE
from mor_core.stored import StoredEntries, is_wrong_type
from mor_core.tasks import in_thread
from redis.asyncio import Redis
from redis.exceptions import LockError, RedisError, ResponseError

from mor_trainer.control.database import Database, HistoryUnavailable, NotOwner, Owner
from mor_trainer.control.history_copies import adopt, set_aside
from mor_trainer.control.transaction import Transaction
from mor_trainer.metrics import HISTORY_OWNED

_MARGIN = 0.1
"""Share of the lease that is left when an owner looks at the database before each answer: clocks differ in pace."""
_LONGEST_NAME = 100
"""Characters of another run control's name in a message."""
_LEASES = StoredEntries("control_lease")

log = structlog.get_logger(__name__)


class Ownership:
    """Ownership of the history by one run control, which tries to get it and to keep it.

    The fractions of the lease: the owner renews it at each fifth, and another run control looks as often whether it is
    free.
    """

    def __init__(
        self, database: Database, redis: Redis, lease_s: float, taken: Callable[[], None], *, former: Path | None = None
    ) -> None:
        """
        Args:
            taken: called on the event loop's thread once this process owns the history.
            former: SQLite file that had the history before; where it is there, a new database begins with it.
        """
        self._database, self._redis, self._lease_s, self._taken = database, redis, lease_s, taken
        self._former = former
        self._adopted: Path | None = None
        """The former file, once it was copied."""
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._lock = redis.lock(CONTROL_LEASE, timeout=lease_s, blocking=False, thread_local=False)
        self._lease = LeaseKey(redis, CONTROL_LEASE, lease_s)
        self._leased = False
        self._reachable = True
        """True if the queue server answered last time. An outage is logged once."""
        self._told: str | None = None
        """Reason for waiting that the log had last."""
        self._unleased_since: float | None = None
        """Monotonic time since which an owner that lives has no lease, and this process could get one."""
        self._seen: Owner | None = None
        self._seen_at = 0.0
        """Monotonic time at which the owner's row was first seen as it is."""

    async def keep(self, owning: Callable[[], AbstractAsyncContextManager[None]]) -> None:
        """Be the owner whenever possible, within ``owning()``, until cancelled."""
        while True:
            while not self._database.owned:
                await asyncio.sleep(random.uniform(0.15, 0.25) * self._lease_s)
                await self.look()
            async with owning():
                while self._database.owned:
                    await asyncio.sleep(self._lease_s / 5)
                    await self.look()
            log.warning("this run control owns the history no more", reason=self._database.standby_reason)

    async def look(self) -> None:
        """Renew what this process owns, or take over what nobody owns."""
        try:
            if self._database.owned:
                await self._renew()
            else:
                await self._try_taking_over()
        except NotOwner:
            pass  # logged below
        except HistoryUnavailable as error:
            log.warning("the owner of the history cannot be read or written", reason=str(error))
        HISTORY_OWNED.set(self._database.owned)
        reason = None if self._database.owned else self._database.standby_reason
        if reason is not None and reason != self._told:
            log.warning("this run control waits for the history", reason=reason)
        self._told = reason

    async def _renew(self) -> None:
        """
        Raises:
            HistoryUnavailable: the database takes nothing now, or another run control owns it.
        """
        asked_at = time.monotonic()
        leased = await self._renew_lease()
        if leased is False:
            self._database.standby_reason = self._lease_of_another(await self._lease_holder() or "")
            await in_thread(self._database.release)
            return
        until = asked_at + (1 - _MARGIN) * self._lease_s
        await in_thread(self._database.connect)
        await in_thread(lambda: self._database.renew(leased=bool(leased), until=until))

    async def _try_taking_over(self) -> None:
        """
        Raises:
            HistoryUnavailable: the database takes nothing now.
        """
        owner = await in_thread(self._database.owner)
        now = time.monotonic()
        if owner != self._seen:
            self._seen, self._seen_at = owner, now
        alive = owner is not None and owner.holder != "" and now - self._seen_at < self._lease_s
        if alive and owner is not None and (reason := await self._claim_of(owner, now)) is not None:
            self._database.standby_reason = reason
            return
        leased = await self._renew_lease()
        if leased is False:
            self._database.standby_reason = self._lease_of_another(await self._lease_holder() or "")
        if leased is False or (alive and leased is None):
            return
        seen = 0 if owner is None else owner.epoch
        # On the event loop's thread, so that no request comes between a takeover and what it loads.
        if self._database.take_over(self.name, seen, leased=bool(leased), begin=self._adopt_former):
            self._unleased_since = None
            if self._adopted is not None:
                set_aside(self._adopted)
                self._adopted = None
            try:
                self._taken()
            except BaseException:
                self._database.release()
                raise
            log.info("this run control owns the history", epoch=seen + 1, name=self.name)

    def _adopt_former(self, sql: Transaction) -> None:
        if self._former is not None and self._former.is_file():
            adopt(self._former, sql)
            self._adopted = self._former

    async def _claim_of(self, owner: Owner, now: float) -> str | None:
        """Return why an owner that lives keeps the history; ``None`` where it has lost the queue server, and not alone.

        One that says so gets a whole lease to come back, counted while this process reaches the server.
        """
        holder = await self._lease_holder()
        if owner.leased or holder is None:
            self._unleased_since = None
        elif self._unleased_since is None:
            self._unleased_since = now
        elif now - self._unleased_since >= self._lease_s:
            return None
        name = visible(owner.holder)[:_LONGEST_NAME]
        if owner.leased and holder is not None and holder != name:
            return (
                f"run control {name} owns the history in {self._database.name}, and has no lease on this queue server; "
                "give both the same MOR_REDIS_URL, or stop one"
            )
        return f"run control {name} owns the history; send requests to it. This one takes over when it is gone"

    def _lease_of_another(self, holder: str) -> str:
        name = holder or "without a name"
        return (
            f"run control {name} has the lease on the queue server; send requests to it. This one takes over about "
            f"{self._lease_s:g} s after it is gone"
        )

    async def _lease_holder(self) -> str | None:
        """Return who has the lease on the queue server, empty for nobody; ``None`` if the server cannot be asked."""
        try:
            async with asyncio.timeout(self._lease_s / 5):
                found: Any = await self._redis.get(CONTROL_LEASE)
        except ResponseError:  # of another type
            return "of another application"
        except (RedisError, OSError, TimeoutError):
            return None
        return visible((found or b"").decode(errors="replace"))[:_LONGEST_NAME]

    async def _renew_lease(self) -> bool | None:
        """Return whether this process has the lease on the queue server; ``None`` if the server cannot be asked."""
        try:
            async with asyncio.timeout(self._lease_s / 5):
                if not (self._leased and await self._reacquire()):
                    self._leased = bool(await self._lock.acquire(token=self.name))
                if not self._leased and await self._break_stale_lease():
                    self._leased = bool(await self._lock.acquire(token=self.name))
        except (RedisError, OSError, TimeoutError) as error:
            if self._reachable:
                reason = "no answer in time" if isinstance(error, TimeoutError) else describe_failure(error)
                log.warning("the lease on the queue server cannot be renewed", reason=reason)
            self._reachable = False
            return None
        self._reachable = True
        return self._leased

    async def _reacquire(self) -> bool:
        try:
            return bool(await self._lock.reacquire())
        except LockError:  # it ended, or another run control has it
            return False
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            return False

    async def _break_stale_lease(self) -> bool:
        """Delete a lease that does not end in time: of another type, or the server's clock was set back.

        The owner does so at once, since nobody else may have the lease.

        Returns:
            Whether it was deleted.
        """
        if self._database.owned:
            is_deleted = await delete_endless(self._redis, CONTROL_LEASE, self._lease_s)
        else:
            is_deleted = await self._lease.delete_unheld()
        if not is_deleted:
            return False
        _LEASES.refuse(CONTROL_LEASE, "the lease does not end in time; it is deleted")
        return True

    async def release(self) -> None:
        """Give history and lease back, so that another run control need not wait."""
        with contextlib.suppress(HistoryUnavailable):
            await in_thread(self._database.release)
        if self._leased:
            with contextlib.suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._lease_s / 5):
                    await self._lock.release()
