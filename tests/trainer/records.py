"""Stream records for tests."""

from __future__ import annotations

from mor_core.wire import Message, PromptRecord, RolloutRecord, Sampling, WeightsRef


def rollout_of(group_id: str = "g", *, pixels: str | None = None, version: int = 0) -> RolloutRecord:
    prompt = PromptRecord(
        run="r",
        group_id=group_id,
        prompt_id="p",
        messages=(Message(role="user", content="how many?"),),
        sampling=Sampling(group_size=1, max_tokens=4),
        weights=WeightsRef(version=version),
    )
    return RolloutRecord(
        run="r",
        group_id=group_id,
        prompt=prompt,
        responses=("two",),
        finish_reasons=("stop",),
        tokens="a" * 64,
        weights_version=version,
        image_tokens=4,
        pixels=pixels,
    )
