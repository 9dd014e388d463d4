"""vLLM in bfloat16 computes with weights that are published in bfloat16 exactly as with those in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mor_rollout import environment
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import SampleParams
from mor_rollout.engines.self_test import self_test
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore
from mor_trainer.weights.published_type import PublishedTensors

from tests.rollout.conftest import settings_for
from tests.rollout.publisher import Publisher
from tests.rollout.reference import base_tensors, moved, picture, prompt_input

pytestmark = [pytest.mark.anyio, pytest.mark.vllm, pytest.mark.slow]


async def test_both_publications_are_the_same_policy(tiny_vlm: Path, tmp_path: Path, publisher: Publisher) -> None:
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine

    settings = settings_for(tiny_vlm, tmp_path, dtype="bfloat16")
    environment.prepare(settings)
    base = BaseCheckpoint(settings.model)
    engine = VllmEngine(settings, base, PromptCodec(settings, base))
    store = WeightsStore(settings, base)
    await engine.start()
    try:
        await self_test(settings, engine)
        swapper = PolicySwapper(settings, engine, store)
        prompt = await engine.encode(prompt_input(picture(1)))
        tensors = moved(base_tensors(tiny_vlm), 1)
        sampled = []
        for version, published in enumerate((tensors, dict(PublishedTensors(tensors, torch.bfloat16)))):
            async with swapper.sampling("run", publisher.publish("run", version, published)):
                assert swapper.read_back is not None
                assert swapper.read_back.verified == len(tensors)
                assert not swapper.read_back.mismatched
                responses = await engine.sample(prompt, SampleParams(12, 1.0, 1.0), [1, 2])
                sampled.append([(one.token_ids, one.logprobs) for one in responses])
        assert sampled[0] == sampled[1]
    finally:
        await store.aclose()
        await engine.close()
