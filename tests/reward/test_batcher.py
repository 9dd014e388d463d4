"""A pass of the model that fails ends its own items only, and the scoring goes on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import cast

import pytest
from mor_core import background
from mor_core.errors import Unavailable
from mor_core.tasks import stop
from mor_core.wire import Message
from mor_reward.backbones import Example
from mor_reward.batcher import Batcher
from mor_reward.scoring_engine import ItemOutcome, ScoringEngine

pytestmark = pytest.mark.anyio


class FailingOnce:
    """Engine whose first pass fails outside of every item."""

    def __init__(self) -> None:
        self.passes = 0

    def run(self, items: Sequence[Sequence[Example]]) -> list[ItemOutcome]:
        self.passes += 1
        if self.passes == 1:
            raise MemoryError
        return [ItemOutcome("ok", scores=(0.0,) * len(examples)) for examples in items]


async def test_a_pass_that_fails_answers_its_items_and_the_next_one_is_scored() -> None:
    engine = cast(ScoringEngine, FailingOnce())
    batcher = Batcher(engine, batch_responses=4, queue_responses=8, wait_s=0)
    task = background.start(batcher.run, essential=True)
    item = [[Example((Message(role="user", content="?"),), (), "yes")]]
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable, match="the pass of the model failed"):
            await batcher.score(item, math.inf, "router")
        assert background.ended_tasks(essential=True).keys() == {"Batcher.run"}
        [outcome] = await batcher.score(item, math.inf, "router")
    assert outcome.status == "ok"
    batcher.close()
    await task
    await stop([task])
