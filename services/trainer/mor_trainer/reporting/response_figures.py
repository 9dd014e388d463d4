"""Figures of a step's responses that show a collapse: how alike they are, and how far the clients agree on them."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence

from mor_core.wire import RewardRecord

_FLAT_LOGITS = 1e-6
"""Standard deviation of a client's scores, logits, up to which it has no preference in a group."""


def identical_ratio(records: Sequence[RewardRecord]) -> float | None:
    """Return the share of the responses that are the most frequent text; ``None`` where all groups have one prompt.

    Right answers to different prompts differ, so that a policy which is certain of each is no collapse.
    """
    if len({record.rollout.prompt.prompt_id for record in records}) < 2:
        return None
    texts = Counter(text.strip() for record in records for text in record.rollout.responses)
    return max(texts.values()) / texts.total()


def agreement(record: RewardRecord) -> float | None:
    """Return the mean correlation of two clients' scores of a group; ``None`` where no two have a preference.

    Clients without weight do not count. With each client's scores as a vector of mean 0 and length 1, the sum over
    pairs follows from the sum of the vectors.
    """
    vectors = []
    for client in record.clients:
        scores = client.calibrated or ()
        if client.weight > 0 and len(scores) > 1 and statistics.pstdev(scores) > _FLAT_LOGITS:
            mean, length = statistics.fmean(scores), statistics.pstdev(scores) * math.sqrt(len(scores))
            vectors.append([(score - mean) / length for score in scores])
    count = len(vectors)
    if count < 2:
        return None
    total: list[float] = [sum(column) for column in zip(*vectors, strict=True)]
    return (sum(value * value for value in total) - count) / (count * (count - 1))
