"""Selection of the arms that train a policy, and their rewards in the router's place."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from mor_core.blobs import Blobs
from mor_core.run_announcements import announce, withdraw
from mor_core.streams import Streams
from mor_core.tasks import stop
from mor_reward.backbones import DualEncoderConfig
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, train
from quality.arm_rewards import ArmRewards
from quality.arms import baselines
from quality.evidence import REFERENCE
from quality.group_scores import GroupScores, Rewards
from quality.grpo import best_arms
from redis.asyncio import Redis

from tests.reward import reward_kit as kit
from tests.router.planted import picture
from tests.router.test_reward_stage import all_of, count, rollout

pytestmark = pytest.mark.anyio


def curve(value: float) -> dict[str, Any]:
    return {"kl": [0.5, 1.0], "correct": [0.9, value]}


def test_the_arms_are_mor_and_the_best_at_one_nat() -> None:
    titles = [arm.title for arm in baselines()]
    curves = {title: curve(0.1) for title in titles} | {REFERENCE: curve(0.3)}
    curves |= {titles[3]: curve(0.4), titles[7]: curve(0.2), titles[1]: {"kl": [0.5], "correct": [0.9]}}
    found = best_arms({"policies": {"by anchors": {"64": {"curves": curves}}}}, 3)
    assert [arm.title for arm in found] == [REFERENCE, titles[3], titles[7]]


async def test_an_arm_replaces_the_router(redis: Redis, redis_url: str, run_name: str, tmp_path: Path) -> None:
    text, vision = kit.build_text_encoder(tmp_path / "text"), kit.build_vision_encoder(tmp_path / "vision")
    config = DualEncoderConfig(vision=str(vision), text=str(text), image_size=64, width=32, max_length=32, max_images=2)
    prefs = kit.write_colour_preferences(tmp_path / "data", 20)
    models = [tmp_path / name for name in ("one", "two")]
    for seed, model in enumerate(models):
        train(TrainingJob(prefs, model, model.name, "shapes", config, TrainConfig(epochs=1, seed=seed)), NoProgress())
    seen: list[GroupScores] = []

    def last_client(groups: GroupScores) -> Rewards:
        seen.append(groups)
        return groups.scores[:, -1]

    content = picture("chart", 3)
    digest = await Blobs(redis, run_name).put(content, "g1")
    sent = rollout(run_name, "g1", ("red", "blue", "green"), digest)
    await announce(redis, run_name, "model")
    await Streams(redis, run_name, 256).publish("rollouts", sent, timeout_s=5)
    async with ArmRewards(redis_url, run_name, "the last client alone", models, last_client) as rewards:
        serving = asyncio.create_task(rewards.serve())
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)
        await stop([serving])
    await withdraw(redis, run_name)
    (record,) = await all_of(redis, run_name, "rewards")
    (groups,) = seen
    assert groups.scores.shape == (1, 2, 3)
    assert record.rewards == pytest.approx(groups.scores[0, 1])
    assert record.rollout == sent
