"""No failure of a group ends a run: the group becomes a dead letter after a bounded number of deliveries."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from mor_core import run_stage
from mor_core.run_announcements import announce
from mor_core.run_stage import MOST_DELIVERIES
from mor_core.tasks import stop
from mor_core.timed_calls import TimedCalls
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import PromptInput, SampleParams
from mor_rollout.engines.transformers_engine import TransformersEngine
from mor_rollout.group_sampler import GroupSampler
from mor_rollout.limits_report import engine_name
from mor_rollout.rollout_stage import RolloutStage
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore
from redis.asyncio import Redis
from starlette.responses import Response

from tests.rollout.publisher import Publisher
from tests.rollout.reference import messages, picture
from tests.rollout.run import Run

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
LEASE_S = 0.3
BAD = {"temperature": 0.123, "max_tokens": 4}
"""Sampling of the group that fails."""


@pytest.fixture
def quick(settings: RolloutSettings, monkeypatch: pytest.MonkeyPatch) -> RolloutSettings:
    """Settings under which a failed group is delivered again within a second."""
    monkeypatch.setattr(run_stage, "_BLOCK_S", LEASE_S / 2)
    return settings.model_copy(update={"backend": "transformers", "lease_s": LEASE_S, "watch_interval_s": 0.1})


@pytest.fixture
async def plain(quick: RolloutSettings, base: BaseCheckpoint, codec: PromptCodec) -> AsyncIterator[TransformersEngine]:
    engine = TransformersEngine(quick, base, codec)
    await engine.start()
    yield engine
    await engine.close()


def fail_in_processor(engine: TransformersEngine, codec: PromptCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = codec.encode

    def failing(prompt: PromptInput) -> Any:
        if "bad" in str(prompt.messages):
            raise ValueError("the template has no such role")
        return encode(prompt)

    monkeypatch.setattr(codec, "encode", failing)


def hang_in_processor(engine: TransformersEngine, codec: PromptCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = codec.encode

    def hanging(prompt: PromptInput) -> Any:
        if "bad" in str(prompt.messages):
            time.sleep(1.5)
        return encode(prompt)

    monkeypatch.setattr(codec, "encode", hanging)
    monkeypatch.setattr(codec, "calls", TimedCalls("the encoding of a prompt", 0.4, "MOR_ENCODE_TIMEOUT_S"))


def fail_in_engine(engine: TransformersEngine, codec: PromptCodec, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = engine.sample

    async def failing(prompt: Any, params: SampleParams, seeds: Any) -> Any:
        if params.temperature == BAD["temperature"]:
            raise MemoryError("no room")
        return await sample(prompt, params, seeds)

    monkeypatch.setattr(engine, "sample", failing)


@pytest.mark.parametrize(
    ("fail", "reason", "attempts"),
    [
        (fail_in_processor, "ValueError in rollout/test_rollout", MOST_DELIVERIES + 1),
        (hang_in_processor, "the encoding of a prompt did not end within 0.4 s (MOR_ENCODE_TIMEOUT_S)", 1),
        (fail_in_engine, "MemoryError: no room", MOST_DELIVERIES + 1),
    ],
)
async def test_a_group_that_fails_in_an_unexpected_way_is_given_up_and_the_others_are_sampled(
    quick: RolloutSettings,
    base: BaseCheckpoint,
    codec: PromptCodec,
    plain: TransformersEngine,
    store: WeightsStore,
    publisher: Publisher,
    redis: Redis,
    run_name: str,
    monkeypatch: pytest.MonkeyPatch,
    fail: Any,
    reason: str,
    attempts: int,
) -> None:
    fail(plain, codec, monkeypatch)
    await announce(redis, run_name, quick.model)
    run = Run(redis, run_name)
    ref = publisher.publish(run_name, 1, {})
    for group in ("g1", "g2"):
        await run.issue(group, ref, max_tokens=4)
    await run.issue("g99", ref, messages=messages(picture(99), text="bad"), **BAD)
    for group in ("g3", "g4"):
        await run.issue(group, ref, max_tokens=4)
    swapper = PolicySwapper(quick, plain, store)
    sampler = GroupSampler(settings=quick, engine=plain, codec=codec, swapper=swapper)
    stage = RolloutStage(settings=quick, redis=redis, base=base, sampler=sampler)
    work = asyncio.create_task(stage.work())
    try:
        assert set(await run.rollouts(4)) == {"g1", "g2", "g3", "g4"}
        dead = await run.dead_letter()
        assert (dead.group_id, dead.stage, dead.attempts) == ("g99", "rollout", attempts)
        assert reason in dead.reason
        await run.issue("g5", ref, max_tokens=4)
        assert set(await run.rollouts(1)) == {"g5"}
    finally:
        await stop([work])


async def test_groups_wait_while_run_control_is_away(
    quick: RolloutSettings,
    base: BaseCheckpoint,
    codec: PromptCodec,
    plain: TransformersEngine,
    store: WeightsStore,
    publisher: Publisher,
    redis: Redis,
    run_name: str,
) -> None:
    """A wait costs no delivery, and the trainer can read what the groups wait for."""
    await announce(redis, run_name, quick.model)
    run = Run(redis, run_name)
    ref = publisher.publish(run_name, 1, {})
    path = f"/v1/runs/{run_name}/weights/1"
    publisher.faults[path] = lambda request: Response("down for a moment", 503)
    for group in ("g1", "g2"):
        await run.issue(group, ref, max_tokens=4)
    swapper = PolicySwapper(quick, plain, store)
    sampler = GroupSampler(settings=quick, engine=plain, codec=codec, swapper=swapper)
    stage = RolloutStage(settings=quick, redis=redis, base=base, sampler=sampler)
    work = asyncio.create_task(stage.work())
    try:
        [wait] = await run.waits()
        assert wait.stage == "rollout"
        assert "answered 503" in wait.missing["weights"]
        del publisher.faults[path]
        assert set(await run.rollouts(2)) == {"g1", "g2"}
        assert await run.streams.depth("dead") == 0
    finally:
        await stop([work])


async def test_a_dead_letter_names_engine_and_version_whose_files_are_damaged(
    quick: RolloutSettings,
    base: BaseCheckpoint,
    codec: PromptCodec,
    plain: TransformersEngine,
    store: WeightsStore,
    publisher: Publisher,
    redis: Redis,
    run_name: str,
) -> None:
    await announce(redis, run_name, quick.model)
    run = Run(redis, run_name)
    ref = publisher.publish(run_name, 7, {})
    publisher.faults[f"/v1/runs/{run_name}/weights/7"] = lambda _: Response(status_code=404)
    await run.issue("g1", ref, max_tokens=4)
    swapper = PolicySwapper(quick, plain, store)
    sampler = GroupSampler(settings=quick, engine=plain, codec=codec, swapper=swapper)
    stage = RolloutStage(settings=quick, redis=redis, base=base, sampler=sampler)
    work = asyncio.create_task(stage.work())
    try:
        dead = await run.dead_letter()
    finally:
        await stop([work])
    assert (dead.group_id, dead.weights_version) == ("g1", 7)
    assert dead.reason.startswith(f"engine {engine_name()}: ")
    assert "answered 404" in dead.reason
