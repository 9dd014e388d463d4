"""A client that joins while a gate is in force: what its weight, earned without refitting the others, is worth."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from mor_router.mathematics.mixture import extend_mixture, fit_mixture

from quality.arms import MixtureOfRewards
from quality.arms.mixture import ENTROPY_FLOOR, serve
from quality.evidence import Evidence, Table
from quality.scored import Anchors, Groups, agreement


def joining(evidence: Evidence) -> Table:
    """Each client in turn comes last. Accuracy, percent: on all pairs, and on the sub-skill that it is best at."""
    cases = [
        (anchors, last)
        for anchors in evidence.drawn(draws=max(2, evidence.draws // 4))
        for last in range(len(evidence.clients))
    ]
    found = list(evidence.each(_joining, *zip(*cases, strict=True), repeat(evidence.held_out)))
    return {
        way: {of: float(np.mean([levels[way][of] for levels in found])) for of in ("all", "own")} for way in found[0]
    }


def _joining(anchors: Anchors, last: int, held_out: Groups) -> dict[str, dict[str, float]]:
    right, skills = agreement(held_out.scores), np.array(held_out.skills)
    own = skills == max(sorted(set(held_out.skills)), key=lambda skill: float(right[skills == skill, last].mean()))
    order = [*(k for k in range(held_out.scores.shape[1]) if k != last), last]
    ways = _ways(_ordered(anchors.pairs, order), _ordered(held_out, order))
    hits = {way: agreement(rewards) for way, rewards in ways.items()}
    return {way: {"all": 100 * float(hit.mean()), "own": 100 * float(hit[own].mean())} for way, hit in hits.items()}


def _ways(told: Groups, live: Groups) -> dict[str, np.ndarray]:
    """Rewards of the pairs without the last client, with it added to a fixed gate, and with all fitted anew."""
    clients = [str(k) for k in range(told.scores.shape[1])]
    known, fitted = fit_mixture(clients[:-1], told.inputs, told.scores[:, :-1], entropy_floor=ENTROPY_FLOOR)
    joined, _ = extend_mixture(known, clients[-1:], told.inputs, told.scores, fitted.precision)
    return {
        "without": serve(known, live.said(live.scores[:, :-1])),
        "joined": serve(joined, live),
        "refit": MixtureOfRewards().fit(Anchors(told))(live),
    }


def _ordered(groups: Groups, order: list[int]) -> Groups:
    return groups.said(groups.scores[:, order])
