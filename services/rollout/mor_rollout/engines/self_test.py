"""The start-up self-test: does what the engine computes follow the weights it is given, and come back?"""

from __future__ import annotations

from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from PIL import Image

from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import Engine, EngineError, SampleParams, Shown

_TOKENS = 4
_FOLLOWED = 1e-3
_SAME = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}
_SEED = 20_26


async def self_test(settings: RolloutSettings, engine: Engine) -> None:
    """Swap in noise on every tensor and back, looking at log-probabilities before, between and after; the same with an
    adapter of noise, where adapters are loaded.

    The prompt has an image, where the engine takes any, and is sampled with prefix and encoder caches warm: stale
    caches fail the test like stale weights do.

    Raises:
        EngineError: log-probabilities did not follow, or did not come back.
    """
    prompt = await engine.encode(_shown(settings))
    params = SampleParams(max_tokens=_TOKENS, temperature=0.0, top_p=1.0)

    async def probe() -> list[float]:
        await engine.sample(prompt, params, [0])
        (response,) = await engine.sample(prompt, params, [0])
        return list(response.logprobs)

    before = await probe()
    for adapter in (False, True) if settings.lora_max_rank else (False,):
        await engine.perturb(_SEED, adapter=adapter)
        moved = _distance(before, await probe())
        if moved < _FOLLOWED:
            noise = "an adapter of noise" if adapter else "noise on every tensor"
            raise EngineError(
                f"self-test: log-probabilities moved by {moved:.1e} nats under {noise}; this engine does not compute"
                " with the weights that it is given. Use another build of it, or MOR_BACKEND=transformers"
            )
        await engine.load(None)
        left = _distance(before, await probe())
        if left > _SAME[settings.dtype]:
            raise EngineError(
                f"self-test: after swapping the base back, log-probabilities differ by {left:.1e} nats; weights or"
                " caches of another version stayed. Use another build of the engine, or MOR_BACKEND=transformers"
            )


def _distance(one: list[float], other: list[float]) -> float:
    if len(one) != len(other):
        return float("inf")
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _shown(settings: RolloutSettings) -> Shown:
    words = max(4, min(settings.block_size, settings.max_model_len // 16))
    parts: list[ImagePart | TextPart] = [TextPart(text=" ".join(["What is in the picture?"] * (words // 4)))]
    images = {}
    if settings.max_images:
        picture = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
        digest = sha256(picture.tobytes())
        images[digest] = picture
        parts.insert(0, ImagePart.of(digest))
    return Shown((Message(role="user", content=tuple(parts)),), images)
