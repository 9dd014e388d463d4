"""Onboarding of a client to an active gate: accuracy with its weight fitted while the others stay unchanged."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from mor_router.mathematics.mixture import extend_mixture, fit_mixture

from quality.arms import MixtureOfRewards
from quality.arms.mixture import ENTROPY_FLOOR, serve
from quality.evidence import ExperimentData, Table
from quality.group_scores import AnchorPairs, GroupScores, agreement


def onboarding(evidence: ExperimentData) -> Table:
    """Add each client last in turn. Accuracy, percent: on all pairs, and on the newcomer's best sub-skill."""
    cases = [
        (anchors, last)
        for anchors in evidence.drawn(draws=max(2, evidence.draws // 4))
        for last in range(len(evidence.clients))
    ]
    found = list(evidence.each(_onboard_last, *zip(*cases, strict=True), repeat(evidence.held_out)))
    return {
        way: {of: float(np.mean([levels[way][of] for levels in found])) for of in ("all", "own")} for way in found[0]
    }


def _onboard_last(anchors: AnchorPairs, last: int, held_out: GroupScores) -> dict[str, dict[str, float]]:
    right, skills = agreement(held_out.scores), np.array(held_out.skills)
    own = skills == max(sorted(set(held_out.skills)), key=lambda skill: float(right[skills == skill, last].mean()))
    order = [*(k for k in range(held_out.scores.shape[1]) if k != last), last]
    ways = _ways(_ordered(anchors.pairs, order), _ordered(held_out, order))
    hits = {way: agreement(rewards) for way, rewards in ways.items()}
    return {way: {"all": 100 * float(hit.mean()), "own": 100 * float(hit[own].mean())} for way, hit in hits.items()}


def _ways(anchors: GroupScores, live: GroupScores) -> dict[str, np.ndarray]:
    """Compute rewards without the last client, with it added to a fixed gate, and with a refit of all."""
    clients = [str(k) for k in range(anchors.scores.shape[1])]
    known, fitted = fit_mixture(clients[:-1], anchors.inputs, anchors.scores[:, :-1], entropy_floor=ENTROPY_FLOOR)
    joined, _ = extend_mixture(known, clients[-1:], anchors.inputs, anchors.scores, fitted.precision)
    return {
        "without": serve(known, live.with_scores(live.scores[:, :-1])),
        "joined": serve(joined, live),
        "refit": MixtureOfRewards().fit(AnchorPairs(anchors))(live),
    }


def _ordered(groups: GroupScores, order: list[int]) -> GroupScores:
    return groups.with_scores(groups.scores[:, order])
