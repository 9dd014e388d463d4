"""vLLM in bfloat16, as GPUs use it: prompts with pictures, the self-test, and weights published in its type."""

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

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]


async def test_bfloat16_takes_pictures_and_weights_of_its_type(
    tiny_vlm: Path, tmp_path: Path, publisher: Publisher
) -> None:
    """vLLM casts pixels to the model's type, and the trainer compares those of the processor."""
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine

    settings = settings_for(tiny_vlm, tmp_path, dtype="bfloat16")
    environment.prepare(settings)
    base = BaseCheckpoint(settings.model)
    codec = PromptCodec(settings, base)
    engine = VllmEngine(settings, base, codec)
    store = WeightsStore(settings, base)
    await engine.start()
    try:
        await self_test(settings, engine)
        prompt = prompt_input(picture(1), picture(2))
        encoded = await engine.encode(prompt)
        assert encoded.pixels == codec.encode(prompt)[3]
        swapper = PolicySwapper(settings, engine, store)
        published = dict(PublishedTensors(moved(base_tensors(tiny_vlm), 1), torch.bfloat16))
        async with swapper.sampling("run", publisher.publish("run", 0, published)):
            assert swapper.read_back is not None and swapper.read_back.verified
            assert not swapper.read_back.mismatched
            (response,) = await engine.sample(encoded, SampleParams(4, 1.0, 1.0), [1])
            assert response.token_ids
    finally:
        await store.aclose()
        await engine.close()
