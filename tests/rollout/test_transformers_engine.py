"""The transformers engine has the same guarantees as vLLM's."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, SampleParams
from mor_rollout.engines.self_test import self_test
from mor_rollout.engines.transformers_engine import TransformersEngine
from mor_rollout.swaps import PolicySwapper
from mor_rollout.weights.base_checkpoint import BaseCheckpoint
from mor_rollout.weights.pull import WeightsStore
from mor_trainer.weights.published_type import PublishedTensors

from tests.rollout.conftest import settings_for
from tests.rollout.publisher import Publisher
from tests.rollout.reference import Reference, base_tensors, moved, picture, prompt_input
from tests.tiny_models import Kind, build_tiny_vlm

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
AGREE = 1e-4
"""Largest difference of log-probabilities in float32 that rounding explains, nats."""
PARAMS = SampleParams(max_tokens=12, temperature=1.0, top_p=1.0)


DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
async def plain(
    request: pytest.FixtureRequest, tiny_vlm: Path, tmp_path: Path, base: BaseCheckpoint, codec: PromptCodec
) -> AsyncIterator[Engine]:
    settings = settings_for(tiny_vlm, tmp_path, backend="transformers", device=request.param)
    engine = TransformersEngine(settings, base, codec)
    await engine.start()
    yield engine
    await engine.close()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 0.0])
async def test_logprobs_are_those_of_the_distribution_sampled_from(
    plain: Engine, reference: Reference, temperature: float
) -> None:
    reference.use({})
    prompt = prompt_input(picture(1))
    responses = await plain.sample(await plain.encode(prompt), SampleParams(12, temperature, 1.0), [1, 2, 3])
    assert max(reference.distance(prompt, response, temperature) for response in responses) < AGREE


async def test_a_seed_determines_a_response_in_any_group(plain: Engine) -> None:
    prompt = await plain.encode(prompt_input(picture(1)))
    group = await plain.sample(prompt, PARAMS, [1, 2, 3, 4])
    assert len({response.token_ids for response in group}) == 4
    (alone,) = await plain.sample(prompt, PARAMS, [3])
    assert alone.token_ids == group[2].token_ids
    streamed = [token async for token in plain.stream(prompt, PARAMS, 3)]
    assert tuple(token.token_id for token in streamed) == alone.token_ids
    assert streamed[-1].finish_reason == alone.finish_reason


async def test_image_tokens_are_never_sampled(plain: Engine, codec: PromptCodec) -> None:
    prompt = await plain.encode(prompt_input(picture(1)))
    responses = await plain.sample(prompt, SampleParams(48, 2.0, 0.9), list(range(8)))
    assert not {token for response in responses for token in response.token_ids} & set(codec.forbidden)


async def test_responses_end_with_their_stop_token(plain: Engine, codec: PromptCodec) -> None:
    prompt = await plain.encode(prompt_input(picture(1)))
    responses = await plain.sample(prompt, SampleParams(180, 2.0, 1.0), list(range(24)))
    ended = [response for response in responses if response.finish_reason == "stop"]
    assert ended
    for response in ended:
        assert response.token_ids[-1] in codec.stops
        assert not set(response.token_ids[:-1]) & set(codec.stops)
        assert len(response.logprobs) == len(response.token_ids)


async def test_swaps_and_self_test(
    plain: TransformersEngine, store: WeightsStore, publisher: Publisher, reference: Reference, tiny_vlm: Path
) -> None:
    await self_test(plain._settings, plain)
    swapper = PolicySwapper(plain._settings, plain, store)
    prompt = prompt_input(picture(1))
    for version, only in ((1, ""), (2, "vision_model"), (3, "lm_head")):
        tensors = moved(base_tensors(tiny_vlm), version, only)
        async with swapper.sampling("run", publisher.publish("run", version, tensors)):
            reference.use(tensors)
            (response,) = await plain.sample(await plain.encode(prompt), PARAMS, [1])
            assert reference.distance(prompt, response) < AGREE


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
async def test_weights_published_in_the_engines_type_are_those_that_it_makes_of_float32(
    dtype: torch.dtype, tiny_vlm: Path, tmp_path: Path, publisher: Publisher
) -> None:
    name = str(dtype).removeprefix("torch.")
    settings = settings_for(tiny_vlm, tmp_path, backend="transformers", dtype=name)
    base = BaseCheckpoint(str(tiny_vlm))
    engine = TransformersEngine(settings, base, PromptCodec(settings, base))
    store = WeightsStore(settings, base)
    await engine.start()
    await self_test(settings, engine)
    swapper = PolicySwapper(settings, engine, store)
    prompt = await engine.encode(prompt_input(picture(1)))
    tensors = moved(base_tensors(tiny_vlm), 1)
    sampled = []
    for version, published in enumerate((tensors, dict(PublishedTensors(tensors, dtype)))):
        async with swapper.sampling("run", publisher.publish("run", version, published)):
            assert swapper.read_back is not None and swapper.read_back.verified
            assert not swapper.read_back.mismatched
            sampled.append(await engine.sample(prompt, PARAMS, [1, 2]))
    first, second = ([(one.token_ids, one.logprobs) for one in responses] for responses in sampled)
    assert first == second
    await store.aclose()
    await engine.close()


async def test_adapters_are_merged_and_leave_no_trace(
    plain: TransformersEngine,
    store: WeightsStore,
    publisher: Publisher,
    reference: Reference,
    tiny_vlm: Path,
    adapter: Path,
) -> None:
    swapper = PolicySwapper(plain._settings, plain, store)
    prompt = prompt_input(picture(1))
    async with swapper.sampling("run", publisher.publish_adapter("run", 1, adapter)):
        (response,) = await plain.sample(await plain.encode(prompt), PARAMS, [1])
        reference.use({})
        assert reference.distance(prompt, response) > 1e-3
        assert reference.adapted(adapter).distance(prompt, response) < AGREE
    async with swapper.sampling("run", publisher.publish("run", 2, {})):
        (response,) = await plain.sample(await plain.encode(prompt), PARAMS, [1])
        assert reference.distance(prompt, response) < AGREE


@pytest.mark.parametrize("kind", ["smolvlm", "qwen2_5_vl", "llava"])
async def test_other_architectures(kind: Kind, tmp_path: Path) -> None:
    folder = build_tiny_vlm(tmp_path / kind, tied=True, kind=kind)
    settings = settings_for(folder, tmp_path, backend="transformers")
    base = BaseCheckpoint(str(folder))
    engine = TransformersEngine(settings, base, PromptCodec(settings, base))
    await engine.start()
    await self_test(settings, engine)
    prompt = prompt_input(picture(1), picture(2))
    encoded = await engine.encode(prompt)
    assert encoded.image_tokens > 0
    responses = await engine.sample(encoded, PARAMS, [1, 2])
    reference = Reference(folder)
    assert max(reference.distance(prompt, response) for response in responses) < AGREE
    await engine.close()


@pytest.mark.vllm
async def test_both_backends_agree(engine: Engine, plain: Engine) -> None:
    """Compare the most likely tokens and their log-probabilities; equal seeds draw different tokens."""
    prompt = prompt_input(picture(4), picture(5))
    greedy = SampleParams(24, 0.0, 1.0)
    one, other = await engine.encode(prompt), await plain.encode(prompt)
    assert (one.token_ids, one.image_tokens, one.pixels) == (other.token_ids, other.image_tokens, other.pixels)
    (first,), (second,) = await engine.sample(one, greedy, [0]), await plain.sample(other, greedy, [0])
    assert first.token_ids == second.token_ids
    assert max(abs(a - b) for a, b in zip(first.logprobs, second.logprobs, strict=True)) < AGREE
