"""A call that hangs costs its caller its time limit, and no other caller anything until too many hang."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar
from weakref import WeakKeyDictionary

import pytest
from mor_core import image_budget
from mor_core.errors import Invalid, Unavailable
from mor_core.timed_calls import TimedCalls

pytestmark = pytest.mark.anyio


@pytest.fixture
def release() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


async def test_calls_that_hang_hold_no_place(release: threading.Event) -> None:
    calls = TimedCalls("the encoding", 0.1, "MOR_ENCODE_TIMEOUT_S")
    began = time.monotonic()
    for _ in range(7):
        with pytest.raises(Invalid, match=r"the encoding did not end within 0\.1 s \(MOR_ENCODE_TIMEOUT_S\)"):
            await calls.run_async(release.wait, 30)
    assert time.monotonic() - began < 5
    assert await calls.run_async(len, "abc") == 3
    assert (calls.stuck, calls.problem) == (7, None)


async def test_after_too_many_that_hang_no_call_is_made_until_they_end(release: threading.Event) -> None:
    calls = TimedCalls("the encoding", 0.1, "MOR_ENCODE_TIMEOUT_S")
    hanging = [calls.run_async(release.wait, 30) for _ in range(8)]
    assert all(isinstance(end, Invalid) for end in await asyncio.gather(*hanging, return_exceptions=True))
    with pytest.raises(Unavailable, match="8 threads are stuck"):
        await calls.run_async(len, "abc")
    with pytest.raises(Unavailable, match="restart the service"):
        calls.run(len, "abc")
    release.set()
    for _ in range(1000):
        if calls.problem is None:
            break
        await asyncio.sleep(0.01)
    assert calls.run(len, "abc") == 3


async def test_callers_that_go_away_leave_their_calls_counted(release: threading.Event) -> None:
    calls = TimedCalls("the encoding", 0.2, "MOR_ENCODE_TIMEOUT_S")
    for _ in range(8):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(calls.run_async(release.wait, 30), 0.01)
    await asyncio.sleep(0.3)
    assert calls.stuck == 8


@pytest.mark.parametrize(
    "error",
    [
        StopIteration(),
        TimeoutError("its own"),
        MemoryError("no room"),
        SystemExit(3),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_whatever_a_call_raises_reaches_its_caller(error: BaseException) -> None:
    def failing() -> None:
        raise error

    calls = TimedCalls("the encoding", 5, "MOR_ENCODE_TIMEOUT_S")
    plain = isinstance(error, TimeoutError | MemoryError)
    wanted, told = (type(error), str(error)) if plain else (RuntimeError, f"a call raised {type(error).__name__}")
    with pytest.raises(wanted, match=f"^{told}$"):
        await calls.run_async(failing)
    with pytest.raises(wanted, match=f"^{told}$"):
        calls.run(failing)


async def test_a_call_sees_the_context_of_its_caller() -> None:
    place = ContextVar("place", default="nowhere")
    place.set("here")
    assert await TimedCalls("the encoding", 5, "X").run_async(place.get) == "here"


async def test_images_that_do_not_end_cost_their_request_alone(
    release: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_budget, "_LONGEST_S", 0.1)
    monkeypatch.setattr(image_budget, "_calls", WeakKeyDictionary())  # other tests share this event loop
    for _ in range(3):  # more than are decoded at a time
        with pytest.raises(Invalid, match=r"the decoding of images did not end within 0\.1 s"):
            await image_budget.on_decoder(lambda: release.wait(30))
    assert await image_budget.on_decoder(lambda: "decoded") == "decoded"
