"""Ending background tasks."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_S = 1.0


async def end(*tasks: asyncio.Task[Any]) -> None:
    """Cancel ``tasks`` and wait until they are over; what they raised is left in them.

    One cancellation is not enough: in Python 3.11 ``asyncio.wait_for`` swallows one that comes in the moment in which
    what it waits for is done (redis-py connects through it), and the task goes on. So it is repeated until it takes
    effect; tasks that clean up with an ``await`` are given ``_AGAIN_S`` for it.
    """
    waiting = {task for task in tasks if not task.done()}
    while waiting:
        for task in waiting:
            task.cancel()
        _, waiting = await asyncio.wait(waiting, timeout=_AGAIN_S)
