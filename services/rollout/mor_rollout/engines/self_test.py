"""Start-up self-test: the engine's log-probabilities must follow its weights and return with them."""

from __future__ import annotations

from mor_core.errors import Invalid
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from PIL import Image

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import Engine, EngineError, PromptInput, SampleParams

_TOKENS = 4
"""Tokens to sample: later ones depend on the cached keys and values of earlier ones."""
_MOVED = 1e-3
"""Smallest change of a log-probability under noise, nats. An engine that ignores the noise repeats itself exactly."""
_UNCHANGED = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
"""Largest difference after the base is restored, nats: rounding of the number format."""
_SEED = 2026
"""Seed of the noise; any number, the same at each start."""


async def self_test(settings: RolloutSettings, engine: Engine) -> None:
    """Swap to noise on every tensor and back, and compare log-probabilities before, between and after.

    Where the engine loads adapters, the test is repeated with an adapter of noise. The prompt has two images if the
    engine accepts so many. It is sampled twice each time, so the prefix and encoder caches are warm and a stale cache
    fails the test as stale weights do. The second time it has two responses, which must begin alike: an engine that
    mixes up the images of several responses fails.

    Raises:
        EngineError: log-probabilities did not follow the weights, did not return, or differ within one prompt.
    """
    try:
        prompt = await engine.encode(_test_prompt(settings, min(2, settings.max_images)))
    except Invalid:  # two images are too long for this engine
        prompt = await engine.encode(_test_prompt(settings, 1))
    params = SampleParams(max_tokens=_TOKENS, temperature=0.0, top_p=1.0)

    async def probe() -> list[float]:
        await engine.sample(prompt, params, [0])
        one, other = await engine.sample(prompt, params, [0, 1])
        apart = abs(one.logprobs[0] - other.logprobs[0])
        if not apart <= _UNCHANGED[settings.dtype]:  # NaN, of weights that hold it, fails too
            raise EngineError(
                f"self-test: two responses to one prompt begin {apart:.1e} nats apart, at most"
                f" {_UNCHANGED[settings.dtype]:g} allowed; this engine mixes up the images of several responses. Use"
                " another build of it, or another model family (docs/model-families.md)"
            )
        return list(one.logprobs)

    before = await probe()
    for adapter in (False, True) if settings.lora_max_rank else (False,):
        await engine.perturb(_SEED, adapter=adapter)
        moved = _distance(before, await probe())
        if not moved >= _MOVED:
            noise = "an adapter of noise" if adapter else "noise on every tensor"
            raise EngineError(
                f"self-test: log-probabilities moved by {moved:.1e} nats under {noise}, at least {_MOVED:g} expected;"
                " this engine does not compute with the weights it is given. Use another build of it, or"
                " MOR_BACKEND=transformers"
            )
        await engine.load(None)
        left = _distance(before, await probe())
        if not left <= _UNCHANGED[settings.dtype]:
            raise EngineError(
                f"self-test: log-probabilities differ by {left:.1e} nats after the base was restored, at most"
                f" {_UNCHANGED[settings.dtype]:g} allowed; the engine kept weights or caches of another version. Use"
                " another build of it, or MOR_BACKEND=transformers"
            )


def _distance(one: list[float], other: list[float]) -> float:
    if len(one) != len(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _test_prompt(settings: RolloutSettings, pictures: int) -> PromptInput:
    # At least one whole cache block of text, so that a prefix is cached, in a sixteenth of the engine's length.
    words = max(4, min(settings.block_size, settings.max_model_len // 16))
    text = TextPart(text=" ".join(["What is in the picture?"] * (words // 4)))
    images = {}
    for number in range(pictures):
        picture = Image.linear_gradient("L").rotate(90 * number).resize((64, 64)).convert("RGB")
        images[sha256(picture.tobytes())] = picture
    return PromptInput((Message(role="user", content=(*map(ImagePart.of, images), text)),), images)
