"""Gold values of sampled responses, by the programs that know the exact answers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from three_domains.domains import ANSWERS
from three_domains.questions import Gold

from quality.population import SKILLS
from quality.scored import Rewards
from quality.scoring import Group


def correctness(golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """1 where a response is true and answers all that was asked, else 0."""
    return np.array(
        [
            [float(ANSWERS[gold["domain"]].correct(gold, example.response)) for example in group.examples]
            for gold, group in zip(golds, groups, strict=True)
        ]
    )


def liking(golds: Sequence[Gold], groups: Sequence[Group]) -> Rewards:
    """The taste of the domain's clients, in standard deviations over all responses of the domain."""
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
