from __future__ import annotations

import ast
import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from mor_core.tasks import in_thread, stop, within

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


async def test_a_thread_that_raises_stop_iteration_ends() -> None:
    async with asyncio.timeout(10):
        assert await in_thread(int, "ff", base=16) == 255
        with pytest.raises(RuntimeError, match="raised StopIteration"):
            await in_thread(next, iter(()))
        with pytest.raises(ValueError, match="invalid literal"):
            await in_thread(int, "x")


@pytest.mark.parametrize(("hurried_after_s", "least_s", "most_s"), [(60, 0.5, 5), (0, 0.1, 0.45), (0.2, 0.3, 0.5)])
async def test_work_is_cancelled_after_its_time_and_sooner_in_a_hurry(
    hurried_after_s: float, least_s: float, most_s: float
) -> None:
    began, cancelled = time.monotonic(), asyncio.Event()

    async def hanging() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    def hurried() -> bool:
        return time.monotonic() > began + hurried_after_s

    with pytest.raises(TimeoutError):
        await within(0.5, hanging(), hurried=hurried, hurried_s=0.1)
    assert least_s <= time.monotonic() - began < most_s
    assert cancelled.is_set()


async def test_work_within_its_time_returns_its_value_or_raises_its_error() -> None:
    async def failing() -> None:
        raise ValueError("its own")

    assert await within(5, asyncio.sleep(0, "done"), hurried=lambda: True, hurried_s=5) == "done"
    with pytest.raises(ValueError, match="its own"):
        await within(5, failing(), hurried=lambda: False, hurried_s=5)


def test_no_handler_of_a_group_of_exceptions_raises() -> None:
    """Python 3.11.2, which Debian has, puts what an ``except*`` block raises into another group."""
    root = Path(__file__).parents[2]
    modules = [path for folder in ("packages", "services") for path in (root / folder).glob("*/mor_*/**/*.py")]
    assert modules
    raising = [
        f"{path}:{handled.lineno}"
        for path in modules
        for handled in ast.walk(ast.parse(path.read_text()))
        if isinstance(handled, ast.TryStar)
        and any(isinstance(node, ast.Raise) for handler in handled.handlers for node in ast.walk(handler))
    ]
    assert not raising
