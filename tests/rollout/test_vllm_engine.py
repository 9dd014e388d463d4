"""vLLM samples from its weights, and its log-probabilities are those that a trainer computes."""

from __future__ import annotations

import pytest
from mor_core.errors import Invalid
from mor_core.sampling import response_seed
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.prompt_codec import PromptCodec
from mor_rollout.engines.protocol import Engine, EngineError, ImageMismatch, SampleParams
from mor_rollout.engines.self_test import self_test

from tests.rollout.reference import Reference, picture, prompt_input

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
]
AGREE = 1e-4
"""Largest difference of log-probabilities in float32 that rounding explains, nats."""
PARAMS = SampleParams(max_tokens=12, temperature=1.0, top_p=1.0)


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7, 0.0])
async def test_logprobs_are_those_of_the_distribution_sampled_from(
    engine: Engine, reference: Reference, temperature: float
) -> None:
    reference.use({})
    prompt = prompt_input(picture(1), picture(2))
    encoded = await engine.encode(prompt)
    responses = await engine.sample(encoded, SampleParams(12, temperature, 1.0), [11, 12, 13])
    assert max(reference.distance(prompt, response, temperature) for response in responses) < AGREE


async def test_text_only_prompts(engine: Engine, reference: Reference) -> None:
    reference.use({})
    prompt = prompt_input(text="count the triangles")
    encoded = await engine.encode(prompt)
    (response,) = await engine.sample(encoded, PARAMS, [1])
    assert encoded.pixels is None
    assert encoded.image_tokens == 0
    assert reference.distance(prompt, response) < AGREE


async def test_a_seed_determines_a_response(engine: Engine) -> None:
    seeds = [response_seed(3, "run", "group", index) for index in range(6)]
    prompt = await engine.encode(prompt_input(picture(1)))
    first = await engine.sample(prompt, PARAMS, seeds)
    again = await engine.sample(prompt, PARAMS, seeds)
    assert [response.token_ids for response in first] == [response.token_ids for response in again]
    assert len({response.token_ids for response in first}) == len(seeds)
    (alone,) = await engine.sample(prompt, PARAMS, seeds[4:5])
    assert alone.token_ids == first[4].token_ids


async def test_image_tokens_are_never_sampled(engine: Engine, codec: PromptCodec, reference: Reference) -> None:
    """At temperature 2 the weights give forbidden ids more than a third of the probability."""
    tokenizer = codec.processor.tokenizer
    favoured = [tokenizer.convert_tokens_to_ids(token) for token in ("<image>", "<row_1_col_1>", "<global-img>")]
    assert set(favoured) <= set(codec.forbidden)
    prompt = await engine.encode(prompt_input(picture(1)))
    (greedy,) = await engine.sample(prompt, SampleParams(1, 0.0, 1.0), [0])
    rows = reference.model.lm_head.weight.shape[0]
    assert rows > len(tokenizer), "the test needs ids that no tokenizer can decode"
    responses = await engine.sample(prompt, SampleParams(64, 2.0, 1.0), list(range(32)))
    sampled = {token for response in responses for token in response.token_ids}
    assert not sampled & set(codec.forbidden)
    assert greedy.token_ids[0] not in codec.forbidden
    assert max(sampled) < len(tokenizer)


async def test_a_response_ends_with_its_stop_token(engine: Engine, codec: PromptCodec) -> None:
    prompt = await engine.encode(prompt_input(picture(1)))
    responses = await engine.sample(prompt, SampleParams(180, 2.0, 1.0), list(range(32)))
    ended = [response for response in responses if response.finish_reason == "stop"]
    assert ended, "no response ended in 180 tokens"
    for response in ended:
        assert response.token_ids[-1] in codec.stops
        assert len(response.logprobs) == len(response.token_ids)


async def test_streamed_tokens_are_the_sampled_ones(engine: Engine) -> None:
    prompt = await engine.encode(prompt_input(picture(3)))
    (whole,) = await engine.sample(prompt, PARAMS, [5])
    tokens = [token async for token in engine.stream(prompt, PARAMS, 5)]
    assert tuple(token.token_id for token in tokens) == whole.token_ids
    assert [token.finish_reason for token in tokens] == [None] * (len(tokens) - 1) + [whole.finish_reason]


async def test_more_prompt_tokens_than_one_step_takes(engine: Engine, reference: Reference) -> None:
    """Many groups at once, each with its own image: seeds hold for any schedule."""
    import asyncio

    reference.use({})
    prompts = [prompt_input(picture(100 + number)) for number in range(24)]
    encoded = await asyncio.gather(*(engine.encode(prompt) for prompt in prompts))
    groups = await asyncio.gather(*(engine.sample(prompt, PARAMS, [1, 2, 3, 4]) for prompt in encoded))
    worst = max(reference.distance(prompt, group[0]) for prompt, group in zip(prompts, groups, strict=True))
    assert worst < AGREE


async def test_prompts_that_do_not_fit_are_refused(engine: Engine, settings: RolloutSettings) -> None:
    with pytest.raises(Invalid, match="MOR_MAX_MODEL_LEN"):
        await engine.encode(prompt_input(text="red circle " * 300))
    with pytest.raises(Invalid, match=f"at most {settings.max_images}"):
        await engine.encode(prompt_input(*(picture(number) for number in range(settings.max_images + 1))))


async def test_other_pixels_at_the_engine_are_an_error(engine: Engine, codec: PromptCodec) -> None:
    import copy

    processor = codec.processor.image_processor
    try:
        codec.processor.image_processor = copy.deepcopy(processor)
        codec.processor.image_processor.image_mean = [0.4, 0.4, 0.4]
        with pytest.raises(ImageMismatch, match="same transformers version"):
            await engine.encode(prompt_input(picture(1)))
    finally:
        codec.processor.image_processor = processor


async def test_self_test_passes_and_leaves_the_base(
    engine: Engine, settings: RolloutSettings, reference: Reference
) -> None:
    reference.use({})
    await self_test(settings, engine)
    prompt = prompt_input(picture(1))
    (response,) = await engine.sample(await engine.encode(prompt), PARAMS, [1])
    assert reference.distance(prompt, response) < AGREE


async def test_self_test_fails_for_an_engine_that_ignores_weights(engine: Engine, settings: RolloutSettings) -> None:
    class Ignoring:
        """Engine that accepts weights and keeps the old ones."""

        def __getattr__(self, name: str) -> object:
            return getattr(engine, name)

        async def perturb(self, _: int, *, adapter: bool = False) -> None:
            return

    with pytest.raises(EngineError, match="does not compute with the weights"):
        await self_test(settings, Ignoring())  # type: ignore[arg-type]


async def test_self_test_fails_for_an_engine_that_ignores_adapters(engine: Engine, settings: RolloutSettings) -> None:
    class Ignoring:
        """Engine that accepts an adapter and does not use it."""

        def __getattr__(self, name: str) -> object:
            return getattr(engine, name)

        async def perturb(self, seed: int, *, adapter: bool = False) -> None:
            if not adapter:
                await engine.perturb(seed)

    with pytest.raises(EngineError, match=r"under an adapter of noise, .*; this engine does not compute"):
        await self_test(settings.model_copy(update={"lora_max_rank": 4}), Ignoring())  # type: ignore[arg-type]
