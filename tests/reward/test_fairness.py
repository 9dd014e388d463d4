"""Callers of a reward service share its model evenly, and a caller that hangs up leaves it."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from mor_core.errors import Overloaded
from mor_core.wire import Message
from mor_reward.backbones import Example
from mor_reward.batcher import Batcher
from mor_reward.scoring_engine import ScoringEngine
from torch import Tensor, zeros

pytestmark = pytest.mark.anyio


class Recording:
    """Scorer that remembers the first response of each pass. The first pass lasts until ``go_on`` is set."""

    uses_pictures = False

    def __init__(self) -> None:
        self.passes: list[str] = []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def unscorable_reason(self, example: Example) -> str | None:
        return None

    def score(self, batch: Sequence[Example]) -> Tensor:
        self.passes.append(batch[0].response)
        self.begun.set()
        self.go_on.wait(20)
        return zeros(len(batch))


@asynccontextmanager
async def batching(scorer: Recording, queue: int = 1000) -> AsyncIterator[Batcher]:
    batcher = Batcher(ScoringEngine(scorer, 1.0, 4), batch_responses=4, queue_responses=queue, wait_s=0)
    loop = asyncio.create_task(batcher.run())
    yield batcher
    batcher.close()
    await loop


def group(name: str) -> list[Example]:
    """Make an item that fills a pass."""
    return [Example((Message(role="user", content="?"),), (), f"{name}{i}") for i in range(4)]


async def test_a_caller_with_much_work_delays_another_by_two_passes() -> None:
    scorer = Recording()
    async with batching(scorer) as batcher:
        greedy = asyncio.create_task(batcher.score([group(f"g{i}") for i in range(20)], math.inf, "greedy"))
        await asyncio.to_thread(scorer.begun.wait, 20)
        modest = asyncio.create_task(batcher.score([group("m")], math.inf, "modest"))
        await asyncio.sleep(0)
        scorer.go_on.set()
        await modest
        assert scorer.passes.index("m0") <= 2
        await greedy


async def test_items_of_a_caller_that_hung_up_are_not_scored() -> None:
    scorer = Recording()
    async with batching(scorer) as batcher:
        gone = asyncio.create_task(batcher.score([group(f"g{i}") for i in range(20)], math.inf, "gone"))
        await asyncio.to_thread(scorer.begun.wait, 20)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        scorer.go_on.set()
        await batcher.score([group("m")], math.inf, "next")
    assert len(scorer.passes) <= 2


async def test_a_full_queue_has_room_for_another_caller() -> None:
    scorer = Recording()
    scorer.go_on.set()
    async with batching(scorer, queue=8) as batcher:
        greedy = asyncio.create_task(batcher.score([group("g0"), group("g1")], math.inf, "greedy"))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match="responses wait"):
            await batcher.score([group("g2")], math.inf, "greedy")
        assert len(await batcher.score([group("m")], math.inf, "modest")) == 1
        await greedy
