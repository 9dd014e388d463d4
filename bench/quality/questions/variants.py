"""Variants of MoR: each on the held-out pairs, and on the anchors that were not drawn, by which it may be chosen."""

from __future__ import annotations

import numpy as np

from quality.arms import Arm, MixtureOfRewards
from quality.arms.variants import variants as list_variants
from quality.evidence import ExperimentData, Table, even
from quality.group_scores import AnchorPairs, agreement
from quality.questions.ranking import COUNTS
from quality.ranking import drawn_rows


def variants(evidence: ExperimentData) -> Table:
    """Compute the accuracy of each variant, percent, by the number of anchors of the fit: mean over draws."""
    arms: list[Arm] = [MixtureOfRewards(), *list_variants(evidence.sampled)]
    return {
        arm.title: {
            str(count): _mean([_levels(arm, evidence, count, seed) for seed in range(evidence.draws)])
            for count in COUNTS
        }
        for arm in arms
    }


def _mean(draws: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([levels[name] for levels in draws])) for name in draws[0]}


def _levels(arm: Arm, evidence: ExperimentData, count: int, seed: int) -> dict[str, float]:
    pool = evidence.pool.pairs
    rows = drawn_rows(pool.domains, even(evidence.domains), count, seed)
    aside = pool.take(np.setdiff1d(np.arange(len(pool)), rows))
    score = arm.fit(AnchorPairs(pool.take(rows)))
    right = {
        name: agreement(score(pairs))
        for name, pairs in (("held-out pairs", evidence.held_out), ("anchors aside", aside))
    }
    domains = np.array(evidence.held_out.domains)
    worst = min(right["held-out pairs"][domains == domain].mean() for domain in evidence.domains)
    return {name: 100 * float(found.mean()) for name, found in right.items()} | {"worst domain": 100 * float(worst)}
