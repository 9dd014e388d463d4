"""Stream records for tests."""

from __future__ import annotations

from mor_core.wire import Message, PromptRecord, RolloutRecord, Sampling, WeightsRef
from mor_trainer.groups.prompt_order import DrawnSource, PromptOrder


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


def order_of(*rows: int, draws_per_step: int = 4) -> PromptOrder:
    """Order of a run with one file of so many rows, or with several sources of equal weight."""
    names = [""] if len(rows) == 1 else [f"source-{place}" for place in range(len(rows))]
    sources = [DrawnSource(name, count) for name, count in zip(names, rows, strict=True)]
    return PromptOrder(sources, seed=0, draws_per_step=draws_per_step)
