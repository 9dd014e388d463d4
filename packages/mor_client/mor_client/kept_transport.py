"""Connections to one service that stay open between the calls of a program that blocks.

The program may have no event loop, or one that is busy, as in a notebook: the calls run on a loop of their own, on
another thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

from mor_core.tasks import stop

from mor_client.async_transport import AsyncTransport
from mor_client.errors import ServiceError

T = TypeVar("T")

_CLOSE_S = 10.0
"""Seconds to wait for the connections to close."""


class KeptTransport:
    """Transport that opens with the first call. A process that was forked, and a copy, open one of their own."""

    def __init__(self, transport: Callable[[], AsyncTransport]) -> None:
        """``transport`` makes the transport. It must not hold this object: connections end where nobody does."""
        self._transport = transport
        self._locks: dict[int, threading.Lock] = {}
        """By process: a thread that is not in a forked process may have held its parent's."""
        self._running: _Running | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptTransport, (self._transport,)

    def run(self, call: Callable[[AsyncTransport], Coroutine[Any, Any, T]]) -> T:
        """Run a call and return what it does; an interruption ends it.

        Raises:
            ServiceError: the service's address is missing or invalid, or another thread closed this.
        """
        with self._lock():
            if self._running is None or self._running.process != os.getpid():
                self._running = _Running(self._transport())
            running = self._running
            future = asyncio.run_coroutine_threadsafe(call(running.transport), running.loop)  # before the end of close
        try:
            return future.result()
        except CancelledError as error:
            cure = "close it when the calls of all threads have ended"
            raise ServiceError(running.transport.service, "it was closed during the call", cure) from error
        except BaseException:
            future.cancel()
            raise

    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def close(self) -> None:
        with self._lock():
            running, self._running = self._running, None
        if running is not None:
            running.close()


class _Running:
    """Transport and the event loop that it belongs to. Both end where nobody holds this object."""

    def __init__(self, transport: AsyncTransport) -> None:
        self.transport = transport
        self.process = os.getpid()
        runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.loop = runner.get_loop()
        ended = asyncio.Event()
        self._thread = threading.Thread(target=_run, args=(runner, transport, ended), name="mor-rewards", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self.loop, ended, self.process)
        self._end.atexit = False  # the thread ends with the process

    def close(self) -> None:
        if self._end():
            self._thread.join(_CLOSE_S)


def _run(runner: asyncio.Runner, transport: AsyncTransport, ended: asyncio.Event) -> None:
    async def hold() -> None:
        async with transport:
            await ended.wait()
            await stop(asyncio.all_tasks() - {asyncio.current_task()})

    with runner:
        runner.run(hold())


def _end(loop: asyncio.AbstractEventLoop, ended: asyncio.Event, process: int) -> bool:
    """Let a loop end, unless it is that of the process which this one was forked from; return whether it does."""
    if process != os.getpid():
        return False
    loop.call_soon_threadsafe(ended.set)
    return True
