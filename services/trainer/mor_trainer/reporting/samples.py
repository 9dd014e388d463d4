"""Sample groups of a step, with everything that led to their advantages, as JSON values."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mor_core.wire import RewardRecord

from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.reporting.thumbnails import encode_thumbnails

_GROUPS = 2
"""Sample groups of a step: enough to judge a run by, few enough for an event."""
_TEXT_CHARACTERS = 2000
"""A longer prompt or response is cut: an event has to fit the queue server and the page."""


def sample_groups(
    taken: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float]],
    step: int,
    images: Callable[[int], Mapping[str, bytes]],
) -> dict[str, Any]:
    """Choose a few groups of the step, the same ones whenever it is computed again.

    ``images`` returns the encoded pictures of a group's prompt, by the group's number.
    """
    chosen = sorted(random.Random(step).sample(range(len(taken)), min(_GROUPS, len(taken))))
    pictures = {digest: content for index in chosen for digest, content in images(taken[index].number).items()}
    return {
        "groups": [_sample(taken[index].record, advantages[index]) for index in chosen],
        "thumbnails": encode_thumbnails(pictures),
    }


def _sample(record: RewardRecord, advantages: Sequence[float]) -> dict[str, Any]:
    prompt = record.rollout.prompt
    return {
        "group_id": record.group_id,
        "prompt_id": prompt.prompt_id,
        "domain": prompt.domain,
        "prompt": "\n".join(f"{message.role}: {message.text}" for message in prompt.messages)[:_TEXT_CHARACTERS],
        "images": [digest for message in prompt.messages for digest in message.image_hashes],
        "weights_version": record.rollout.weights_version,
        "gate_version": record.gate_version,
        "fusion": record.fusion,
        "responses": [text[:_TEXT_CHARACTERS] for text in record.rollout.responses],
        "rewards": list(record.rewards),
        "advantages": list(advantages),
        "clients": [
            {
                "client": score.client,
                "status": score.status,
                "detail": score.detail,
                "weight": score.weight,
                "raw": score.raw,
                "calibrated": score.calibrated,
            }
            for score in record.clients
        ],
    }
