"""Valid records as a starting point for tests."""

from __future__ import annotations

from mor_core.wire import ImagePart, Message, PromptRecord, RolloutRecord, Sampling, TextPart, WeightsRef

DIGEST = "0" * 64


def prompt(run: str, group_id: str = "g1") -> PromptRecord:
    return PromptRecord(
        run=run,
        group_id=group_id,
        prompt_id="p1",
        messages=(Message(role="user", content=(ImagePart.of(DIGEST), TextPart(text="What is it?"))),),
        sampling=Sampling(group_size=2, max_tokens=4),
        weights=WeightsRef(version=0),
    )


def rollout(record: PromptRecord) -> RolloutRecord:
    return RolloutRecord(
        run=record.run,
        group_id=record.group_id,
        prompt=record,
        responses=("a", "b"),
        finish_reasons=("stop", "length"),
        tokens=DIGEST,
        weights_version=0,
        image_tokens=4,
        pixels=None,
    )
