"""Calls of foreign code that may hang, each on a thread of its own with a time limit.

A thread cannot be cancelled. One that is out of time is left behind, holds no place any more, and counts as stuck until
its call ends. Beyond a bound of stuck threads no new call is made, and the service is not ready.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import ParamSpec, TypeVar

import structlog

from mor_core.errors import Invalid, Unavailable
from mor_core.tasks import contained

P = ParamSpec("P")
T = TypeVar("T")

_MOST_STUCK = 8
"""Stuck threads at which no further call is made; each may hold a picture of 192 MiB and a core."""
_AT_ONCE = min(32, (os.cpu_count() or 1) + 4)
"""Calls at a time, as many as threads of ``asyncio.to_thread``."""

log = structlog.get_logger(__name__)


class TimedCalls:
    """Calls of one kind with a time limit."""

    def __init__(self, what: str, limit_s: float, setting: str | None = None, *, at_once: int = _AT_ONCE) -> None:
        """``what`` is made, as "the encoding of a prompt", within ``limit_s`` seconds; ``setting``: the variable that
        holds these, if one does. ``at_once``: calls at a time."""
        self._what = what
        self._limit_s = limit_s
        self._setting = f" ({setting})" if setting else ""
        self._began: dict[int, float] = {}
        """Monotonic time at which each call began that has not ended."""
        self._numbers = itertools.count()
        self._places = asyncio.Semaphore(at_once)

    @property
    def stuck(self) -> int:
        """Number of calls that are out of time and have not ended."""
        latest = time.monotonic() - self._limit_s
        return sum(began < latest for began in list(self._began.values()))

    @property
    def problem(self) -> str | None:
        """Reason why no call is made any more; ``None`` while calls are made."""
        stuck = self.stuck
        if stuck < _MOST_STUCK:
            return None
        return f"{stuck} threads are stuck: {self._what} did not end within {self._limit_s:g} s; restart the service"

    def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and wait for it.

        Raises:
            Invalid: it took too long.
            Unavailable: too many calls are stuck.
        """
        future = self._start(call, *args, **kwargs)
        try:
            return future.result(self._limit_s)
        except TimeoutError:
            if future.done():  # the call's own
                raise
            raise self._late() from None

    async def run_async(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Make a call and wait for it without blocking the event loop; errors are those of ``run``."""
        async with self._places:
            future = asyncio.wrap_future(self._start(call, *args, **kwargs))
            try:
                done, _ = await asyncio.wait([future], timeout=self._limit_s)
                if done:
                    return future.result()
            finally:
                future.cancel()  # nobody wants the result or the error of a call that is left behind
            raise self._late()

    def _start(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        if (problem := self.problem) is not None:
            raise Unavailable(problem)
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()
        number = next(self._numbers)
        context = contextvars.copy_context()

        def work() -> None:
            try:
                result = context.run(contained, partial(call, *args, **kwargs))
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)
            finally:
                del self._began[number]

        self._began[number] = time.monotonic()
        threading.Thread(target=work, name=f"timed call {number}", daemon=True).start()
        return future

    def _late(self) -> Invalid:
        log.warning("a call takes too long and is left behind", what=self._what, stuck=self.stuck)
        return Invalid(f"{self._what} did not end within {self._limit_s:g} s{self._setting}; leave this prompt out")
