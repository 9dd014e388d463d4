"""A client that joins while a gate is in force: what its weight, earned without refitting the others, is worth."""

from __future__ import annotations

import numpy as np
from mor_router.mathematics.mixture import extend_mixture, fit_mixture

from quality.arms import MixtureOfRewards
from quality.arms.mixture import ENTROPY_FLOOR, serve
from quality.evidence import Evidence, Table
from quality.scored import Anchors, Groups, agreement


def joining(evidence: Evidence) -> Table:
    """Each client in turn comes last. Accuracy, percent: on all pairs, and on the sub-skill that it is best at."""
    right, skills = agreement(evidence.held_out.scores), np.array(evidence.held_out.skills)
    names = sorted(set(skills.tolist()))
    found: dict[str, dict[str, list[float]]] = {way: {"all": [], "own": []} for way in ("without", "joined", "refit")}
    for anchors in evidence.drawn(draws=max(2, evidence.draws // 4)):
        for last in range(len(evidence.clients)):
            order = [*(k for k in range(len(evidence.clients)) if k != last), last]
            told, live = _ordered(anchors.pairs, order), _ordered(evidence.held_out, order)
            own = skills == max(names, key=lambda name: float(right[skills == name, last].mean()))
            for way, rewards in _ways(told, live).items():
                hits = agreement(rewards)
                found[way]["all"].append(100 * float(hits.mean()))
                found[way]["own"].append(100 * float(hits[own].mean()))
    return {way: {name: float(np.mean(values)) for name, values in row.items()} for way, row in found.items()}


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
