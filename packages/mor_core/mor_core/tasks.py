"""Ending background tasks for certain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

_AGAIN_S = 0.5


async def stop(tasks: Iterable[asyncio.Task[Any]]) -> list[BaseException | None]:
    """Cancel ``tasks`` and wait until they have ended; returns what each failed with, ``None`` for nothing.

    Until Python 3.12 ``asyncio.wait_for`` drops a cancellation that comes in the very moment in which it is done, and
    redis-py sends every command through it, so a single ``cancel()`` may be lost and a loop over a stream goes on for
    ever. The cancellation is therefore repeated until it is heard. So may be that of the caller by its own stop, in
    turn: it is raised when the tasks have ended, not before.
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
