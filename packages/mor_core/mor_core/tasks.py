"""Reliable cancellation of tasks, time limits, and calls in threads."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Executor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_AGAIN_S = 0.5
"""Time after which a cancellation is repeated, seconds: longer than a task needs to end, short for a person."""
_HURRY_CHECK_S = 0.1
"""Seconds between checks whether the process is to end: short compared with the time that it has for it."""


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> list[BaseException | None]:
    """Cancel ``tasks``, wait until they have ended, and return the exception of each, ``None`` where it had none.

    Until Python 3.12 ``asyncio.wait_for`` drops a cancellation that arrives at the moment of its own completion, and
    redis-py sends every command through it. A single ``cancel()`` may therefore be lost, and a loop over a stream
    continues forever; so it is repeated until the tasks end. A cancellation of the caller is raised after that, not
    before.
    """
    ordered = list(tasks)
    pending = {task for task in ordered if not task.done()}
    stopped: asyncio.CancelledError | None = None
    while pending:
        for task in pending:
            task.cancel()
        try:
            _, pending = await asyncio.wait(pending, timeout=_AGAIN_S)
        except asyncio.CancelledError as error:
            stopped = error
            pending = {task for task in pending if not task.done()}
    if stopped is not None:
        raise stopped
    return [None if task.cancelled() else task.exception() for task in ordered]


def forget_failure(task: asyncio.Task[Any]) -> None:
    """Take the exception of an ended task that several wait for: they may all be gone, and asyncio would report it.

    A done callback, for tasks that are awaited through ``asyncio.shield``.
    """
    if not task.cancelled():
        task.exception()


def is_cancelled() -> bool:
    """Return whether somebody cancelled the current task; a library may raise ``CancelledError`` by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def within(seconds: float, work: Coroutine[Any, Any, T], *, hurried: Callable[[], bool], hurried_s: float) -> T:
    """Do ``work`` within ``seconds``, or within ``hurried_s`` from the moment at which ``hurried()`` is first true.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """
    task = asyncio.create_task(work)
    ends_at, in_hurry = time.monotonic() + seconds, False
    try:
        while not task.done():
            if not in_hurry and hurried():
                ends_at, in_hurry = min(ends_at, time.monotonic() + hurried_s), True
            if (left_s := ends_at - time.monotonic()) <= 0:
                raise TimeoutError
            await asyncio.wait([task], timeout=min(left_s, _HURRY_CHECK_S))
    finally:
        await stop([task])
    return task.result()


def contained(call: Callable[[], T]) -> T:
    """Call code of libraries on a thread, out of which only an ``Exception`` comes.

    No future takes a ``StopIteration``. A ``SystemExit`` would end the event loop that waits for the thread, and the
    panic of a library in Rust, which is no ``Exception`` either, the task.

    Raises:
        RuntimeError: ``call`` raised one of these.
    """
    try:
        return call()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, StopIteration):
            raise
        raise RuntimeError(f"a call raised {type(error).__name__}") from error


async def in_thread(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a worker thread, as ``asyncio.to_thread`` does, which would wait for ever after a ``StopIteration``.

    Raises:
        RuntimeError: see ``contained``.
    """
    return await asyncio.to_thread(contained, partial(call, *args, **kwargs))


async def on_executor(executor: Executor, call: Callable[[], T]) -> T:
    """Call on a thread of ``executor``, like ``in_thread``."""
    return await asyncio.get_running_loop().run_in_executor(executor, contained, call)
