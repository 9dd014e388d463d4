"""Gold values of sampled responses, from the exact answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from three_domains.domains import ANSWERS
from three_domains.questions import Gold

from quality.group_scores import Rewards
from quality.population import SKILLS
from quality.scoring import Group


def correctness(golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """Return 1 for true and complete responses, otherwise 0."""
    return np.array(
        [
            [float(ANSWERS[gold["domain"]].correct(gold, example.response)) for example in group.examples]
            for gold, group in zip(golds, groups, strict=True)
        ]
    )


def liking(golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """Return the taste of the domain's clients, in standard deviations over all responses of the domain."""
    taste = np.array(
        [
            [ANSWERS[gold["domain"]].taste(gold, example.response) for example in group.examples]
            for gold, group in zip(golds, groups, strict=True)
        ]
    )
    for domain in SKILLS:
        rows = np.array([gold["domain"] == domain for gold in golds])
        taste[rows] = (taste[rows] - taste[rows].mean()) / taste[rows].std()
    return taste
