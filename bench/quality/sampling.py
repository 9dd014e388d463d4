"""Sampling of the base policy's responses to the experiment's prompts, by the rollout service's own engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from mor_core.datafiles import Prompt, read_prompts
from mor_core.images import decode
from mor_core.sampling import response_seed
from mor_rollout import environment
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import PromptInput, SampleParams

from quality.scoring import RESPONSES

_SEED = 0
"""Seed of the samples."""
_MAX_TOKENS = 24
"""Longest response, tokens."""


def sample(model: Path, folder: Path, size: int, threads: int) -> None:
    """Write ``size`` responses to each prompt of ``folder`` beside it, at temperature 1."""
    file = folder / RESPONSES
    if file.exists():
        return
    settings = RolloutSettings(model=str(model), backend="transformers", threads=threads, self_test=False)
    environment.prepare(settings)
    prompts = read_prompts(folder / "prompts.jsonl")
    scratch = file.with_suffix(".part")
    scratch.write_text(json.dumps(asyncio.run(_responses(settings, prompts, size))), encoding="utf-8")
    scratch.rename(file)


async def _responses(settings: RolloutSettings, prompts: list[Prompt], size: int) -> list[list[str]]:
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.transformers_engine import TransformersEngine
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint

    base = BaseCheckpoint(settings.model)
    codec = PromptCodec(settings, base)
    engine = TransformersEngine(settings, base, codec)
    await engine.start()
    params = SampleParams(max_tokens=_MAX_TOKENS, temperature=1.0, top_p=1.0)
    found = []
    try:
        for prompt in prompts:
            images = {name: decode(content) for name, content in prompt.images.items()}
            encoded = await engine.encode(PromptInput(prompt.messages, images))
            seeds = [response_seed(_SEED, "quality", prompt.id, index) for index in range(size)]
            sampled = await engine.sample(encoded, params, seeds)
            found.append([codec.decode(response.token_ids) for response in sampled])
    finally:
        await engine.close()
    return found
