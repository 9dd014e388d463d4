"""Sample groups of a step, with everything that led to their advantages, as JSON values."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from mor_core.wire import RewardRecord

from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.reporting.thumbnails import encode_thumbnails

_BY_CHANCE = 1
"""Groups of a step that chance chooses, beside the one of a followed prompt: enough to judge a run by, few enough for
an event."""
_TEXT_CHARACTERS = 2000
"""A longer prompt or response is cut: an event has to fit the queue server and the page."""


def sample_groups(
    taken: Sequence[ScoredGroup],
    advantages: Sequence[Sequence[float]],
    step: int,
    images: Callable[[int], Mapping[str, bytes]],
) -> dict[str, Any]:
    """Choose a few groups of the step, the same ones whenever it is computed again.

    One is of the prompt whose id has the smallest hash: passes over the prompts mostly choose the same ones, so that
    people can follow how the policy's answers to a prompt change.

    ``images`` returns the encoded pictures of a group's prompt, by the group's number.
    """
    ordered = sorted(range(len(taken)), key=lambda index: _place(taken[index].record.rollout.prompt.prompt_id))
    followed, others = ordered[:1], ordered[1:]
    chosen = sorted([*followed, *random.Random(step).sample(others, min(_BY_CHANCE, len(others)))])
    pictures = {digest: content for index in chosen for digest, content in images(taken[index].number).items()}
    return {
        "groups": [_sample(taken[index].record, advantages[index]) for index in chosen],
        "thumbnails": encode_thumbnails(pictures),
    }


def _place(prompt_id: str) -> bytes:
    """Return a place in an order of all prompts that has nothing to do with their content."""
    return sha256(prompt_id.encode()).digest()


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
