from __future__ import annotations

import asyncio
import contextlib

import pytest
from mor_core.tasks import stop

pytestmark = pytest.mark.anyio


async def test_a_task_that_takes_a_cancellation_for_its_own_ends_all_the_same() -> None:
    async def stubborn() -> None:
        for _ in range(2):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue
        await asyncio.sleep(60)

    async def failing() -> None:
        raise ValueError("told by stop")

    tasks = [asyncio.create_task(stubborn()), asyncio.create_task(failing())]
    await asyncio.sleep(0)
    async with asyncio.timeout(10):
        failures = await stop(tasks)
    assert tasks[0].cancelled()
    assert failures[0] is None
    assert isinstance(failures[1], ValueError)


async def test_who_is_stopped_while_it_stops_others_sees_them_to_their_end() -> None:
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
