"""Gold values of sampled responses, from the exact answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from three_domains.questions import Answers, Gold

from quality.group_scores import Rewards
from quality.scoring import Group


def correctness(answers: Mapping[str, Answers], golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """Return 1 for true and complete responses, otherwise 0."""
    return np.array(
        [
            [float(answers[gold["domain"]].correct(gold, example.response)) for example in group.examples]
            for gold, group in zip(golds, groups, strict=True)
        ]
    )


def liking(answers: Mapping[str, Answers], golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """Return the taste of the domain's clients, in standard deviations over all responses of the domain."""
    taste = np.array(
        [
            [answers[gold["domain"]].taste(gold, example.response) for example in group.examples]
            for gold, group in zip(golds, groups, strict=True)
        ]
    )
    for domain in dict.fromkeys(gold["domain"] for gold in golds):
        rows = np.array([gold["domain"] == domain for gold in golds])
        taste[rows] = (taste[rows] - taste[rows].mean()) / (taste[rows].std() or 1.0)
    return taste
