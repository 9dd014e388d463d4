from __future__ import annotations

import asyncio
import contextlib

import pytest
from mor_core.tasks import in_background, in_thread, stop
from structlog.testing import capture_logs

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


async def test_background_work_that_fails_is_logged_at_once_and_the_rest_goes_on() -> None:
    async def failing() -> None:
        raise ValueError("no such key")

    going = asyncio.Event()

    async def other() -> None:
        await asyncio.sleep(0.01)
        going.set()
        await asyncio.sleep(3600)

    with capture_logs() as logged:
        async with in_background(failing(), other()), asyncio.timeout(10):
            await going.wait()
            [line] = logged
            assert line["event"] == "background work ended"
            assert "failing" in line["work"]
            assert isinstance(line["exc_info"], ValueError)
    assert len(logged) == 1


async def test_a_thread_that_raises_stop_iteration_ends() -> None:
    async with asyncio.timeout(10):
        assert await in_thread(int, "ff", base=16) == 255
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await in_thread(next, iter(()))
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(int, "x")
