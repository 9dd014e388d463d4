"""Limit on the calls to one client at a time. The runs come first: they wait only briefly for calls of other callers.

Otherwise another caller's long calls would take the time of the runs' calls, which then fail, and the client would seem
unreliable.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mor_router.clients.caller import RUNS, Caller
from mor_router.clients.responses import ClientFailure

_PATIENCE = 0.1
"""Share of its time for which a call of the runs waits for a slot before the calls of other callers end."""


class CallLimit:
    """Slots for ``count`` calls at a time, at most half of them for other callers than the runs."""

    def __init__(self, count: int) -> None:
        self._slots = asyncio.Semaphore(count)
        self._others_slots = asyncio.Semaphore(max(1, count // 2))
        """Slots that other callers may hold or wait for."""
        self._others: set[asyncio.Timeout] = set()
        """Limits of the calls of other callers that hold a slot or wait for one."""

    @asynccontextmanager
    async def hold(self, caller: Caller, deadline: float) -> AsyncIterator[None]:
        """Hold a slot for a call during the body. The body of another caller ends early if the runs need its slot.

        Raises:
            ClientFailure: none was free before the deadline, or the runs needed it.
        """
        if caller != RUNS:
            async with _slot(self._others_slots, deadline), self._may_end(), _slot(self._slots, deadline):
                yield
            return
        loop = asyncio.get_running_loop()
        impatient = loop.call_later(_PATIENCE * max(0.0, deadline - loop.time()), self._end_others)
        try:
            async with _slot(self._slots, deadline):
                impatient.cancel()
                yield
        finally:
            impatient.cancel()

    @asynccontextmanager
    async def _may_end(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(None) as limit:
                self._others.add(limit)
                try:
                    yield
                finally:
                    self._others.discard(limit)
        except TimeoutError as error:
            raise ClientFailure("busy", "the runs needed this client; try again later") from error

    def _end_others(self) -> None:
        now = asyncio.get_running_loop().time()
        for limit in self._others:
            limit.reschedule(now)


@asynccontextmanager
async def _slot(slots: asyncio.Semaphore, deadline: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(deadline):
            await slots.acquire()
    except TimeoutError as error:
        raise ClientFailure("busy", "the deadline passed while earlier calls to this client were running") from error
    try:
        yield
    finally:
        slots.release()
