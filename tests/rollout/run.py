"""The trainer's and the router's part of one run, in tests of a rollout service."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from mor_core.blobs import Blobs
from mor_core.outage_waits import StageWait, read_waits
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams
from mor_core.wire import DeadLetter, PromptRecord, RolloutRecord, Sampling, TokenBlock, WeightsRef
from mor_rollout.engines.protocol import SampledResponse
from redis.asyncio import Redis

from tests.rollout.reference import Reference, messages, picture, prompt_input


class Run:
    def __init__(self, redis: Redis, name: str) -> None:
        self.redis = redis
        self.name = name
        self.streams = Streams(redis, name, 256)
        self.blobs = Blobs(redis, name)
        self._rollouts: Consumer[RolloutRecord] = Consumer(self.streams, "rollouts", "router", 30)
        self._dead: Consumer[DeadLetter] = Consumer(self.streams, "dead", "trainer", 30)

    async def issue(self, group: str, ref: WeightsRef, image: bytes | None = None, **changes: Any) -> PromptRecord:
        content = image or picture(int(group.removeprefix("g")))
        record = PromptRecord(
            run=self.name,
            group_id=group,
            prompt_id=group,
            messages=changes.pop("messages", messages(content)),
            sampling=Sampling(**{"group_size": 4, "max_tokens": 8, "seed": 3, **changes}),
            weights=ref,
            stamps={"trainer": time.time()},
        )
        if image is None:
            await self.blobs.put(content, group)
        await self.streams.publish("prompts", record, timeout_s=5)
        return record

    async def rollouts(self, count: int) -> dict[str, RolloutRecord]:
        found: dict[str, RolloutRecord] = {}
        async with asyncio.timeout(40):
            while len(found) < count:
                for entry in await self._rollouts.read(count, 0.2):
                    found[entry.record.group_id] = entry.record
                    await self._rollouts.settle(entry)
        return found

    async def dead_letter(self) -> DeadLetter:
        async with asyncio.timeout(40):
            while True:
                for entry in await self._dead.read(1, 0.2):
                    await self._dead.settle(entry)
                    return entry.record

    async def waits(self) -> list[StageWait]:
        """Return what the run's groups wait for, once they wait."""
        async with asyncio.timeout(20):
            while not (found := await read_waits(self.redis, self.name)):  # noqa: ASYNC110 - another process tells it
                await asyncio.sleep(0.1)
        return found

    async def tokens(self, rollout: RolloutRecord) -> TokenBlock:
        return TokenBlock.model_validate_json(await self.blobs.get(rollout.tokens))


async def worst(run: Run, rollout: RolloutRecord, reference: Reference) -> float:
    """Return the largest difference of a token's log-probability from the reference's over a group, nats."""
    block = await run.tokens(rollout)
    prompt = prompt_input(picture(int(rollout.group_id.removeprefix("g"))))
    responses = [
        SampledResponse(ids, logprobs, "stop")
        for ids, logprobs in zip(block.response_token_ids, block.response_logprobs, strict=True)
    ]
    return max(reference.distance(prompt, response) for response in responses)
