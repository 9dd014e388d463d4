"""Comparison of engine and trainer: vLLM's log-probabilities against the trainer's, for the same tokens.

``python bench/logprobs.py --model DIR --prompts FILE`` samples groups with the rollout service's engine, as it does
in a run, and scores the sampled tokens with the trainer's policy. Writes ``bench/results/logprobs-NAME.json``. The
demonstration's are ``.mor/demo/base`` and ``.mor/demo/data/server/prompts.jsonl``.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import record
from mor_core.datafiles import Prompt, read_prompts
from mor_core.images import decode
from mor_core.sampling import response_seed
from mor_rollout import environment
from mor_rollout.config import RolloutSettings
from mor_rollout.engines.protocol import PromptInput, SampledResponse, SampleParams

SEED = 0
"""Seed of the sampled responses."""


@dataclass(frozen=True)
class SampledTokens:
    prompt: Prompt
    responses: list[SampledResponse]


async def sample(
    settings: RolloutSettings, prompts: Sequence[Prompt], size: int, max_tokens: int
) -> list[SampledTokens]:
    """Sample ``size`` responses to each prompt, at temperature 1, all prompts at once as in a run."""
    from mor_rollout.engines.prompt_codec import PromptCodec
    from mor_rollout.engines.vllm.vllm_engine import VllmEngine
    from mor_rollout.weights.base_checkpoint import BaseCheckpoint

    base = BaseCheckpoint(settings.model)
    engine = VllmEngine(settings, base, PromptCodec(settings, base))
    await engine.start()
    params = SampleParams(max_tokens=max_tokens, temperature=1.0, top_p=1.0)

    async def group(prompt: Prompt) -> SampledTokens:
        images = {name: decode(content) for name, content in prompt.images.items()}
        encoded = await engine.encode(PromptInput(prompt.messages, images))
        seeds = [response_seed(SEED, "bench", prompt.id, index) for index in range(size)]
        return SampledTokens(prompt, await engine.sample(encoded, params, seeds))

    try:
        return await asyncio.gather(*(group(prompt) for prompt in prompts))
    finally:
        await engine.close()


def differences(model: str, groups: Sequence[SampledTokens]) -> list[float]:
    """Compute the trainer's minus the engine's log-probability of every sampled token, nats."""
    import torch
    from mor_core.runs import RunSpec
    from mor_trainer.model import loading
    from mor_trainer.model.packed_sequences import PackedSequence
    from mor_trainer.model.policy import Policy

    spec = RunSpec.model_validate({"name": "bench", "model": model, "prompts": "-", "objective": "-", "steps": 1})
    policy = Policy(*loading.load(model), spec)
    found: list[float] = []
    for group in groups:
        prepared = policy.prepare(group.prompt.messages, group.prompt.images)
        responses = tuple(response.token_ids for response in group.responses)
        parts = [responses] if policy.shares_prompts else [(one,) for one in responses]
        sequences = [PackedSequence(prepared, part) for part in parts]
        with torch.no_grad():
            ours, _ = policy.logprobs(sequences)
        theirs = [value for response in group.responses for value in response.logprobs]
        found.extend((ours.double() - torch.tensor(theirs, dtype=torch.double)).tolist())
    return found


def figures(found: Sequence[float]) -> dict[str, Any]:
    from math import exp

    return {
        "tokens": len(found),
        "largest_difference": max(abs(value) for value in found),
        "mean_difference": sum(abs(value) for value in found) / len(found),
        "importance_ratio": [exp(min(found)), exp(max(found))],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True, help="checkpoint folder, or name on the hub")
    parser.add_argument("--prompts", type=Path, required=True, help="mor.prompts/1 file")
    parser.add_argument("--name", default="default", help="name of the result")
    parser.add_argument("--groups", type=int, default=48)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=24)
    options = parser.parse_args()
    settings = RolloutSettings(model=options.model, threads=2, self_test=False)
    environment.prepare(settings)
    rows = read_prompts(options.prompts)
    prompts = rows[:: max(1, len(rows) // options.groups)][: options.groups]
    groups = asyncio.run(sample(settings, prompts, options.size, options.max_tokens))
    found = figures(differences(options.model, groups))
    print(found)
    print(record(f"logprobs-{options.name}", {"model": options.name, "dtype": "float32", **found}))


if __name__ == "__main__":
    main()
