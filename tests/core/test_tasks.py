from __future__ import annotations

import asyncio
import contextlib

import pytest
from mor_core.tasks import stop

pytestmark = pytest.mark.anyio


async def test_a_task_that_swallows_a_cancellation_still_ends() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    async def failing() -> None:
        raise ValueError("returned by stop")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        failures = await stop(tasks)
    assert tasks[0].cancelled()
    assert failures[0] is None
    assert isinstance(failures[1], ValueError)


async def test_a_caller_cancelled_while_it_stops_tasks_waits_until_they_end() -> None:
    ended = False

    async def deaf() -> None:
        nonlocal ended
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3600)
        ended = True

    async def middle() -> None:
        inner = asyncio.create_task(deaf())
        try:
            await asyncio.sleep(3600)
        finally:
            await stop([inner])

    outer = asyncio.create_task(middle())
    await asyncio.sleep(0.05)
    assert await stop([outer]) == [None]
    assert ended
