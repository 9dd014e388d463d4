"""Ranking accuracy of clients, arms and ablations on held-out pairs, and bytes on the wire."""

from __future__ import annotations

import numpy as np

from quality.arms import MixtureOfRewards, ablations
from quality.evidence import ExperimentData, Table, table
from quality.group_scores import agreement


def clients(evidence: ExperimentData) -> Table:
    """Compute each client's accuracy on each sub-skill, percent."""
    right, skills = agreement(evidence.held_out.scores), np.array(evidence.held_out.skills)
    found = {
        client: {skill: 100 * float(right[skills == skill, k].mean()) for skill in sorted(set(skills.tolist()))}
        for k, client in enumerate(evidence.clients)
    }
    return {client: row | {"all": 100 * float(right[:, k].mean())} for k, (client, row) in enumerate(found.items())}


COUNTS = (64, 256)
"""Numbers of anchors."""


def ranking(evidence: ExperimentData) -> Table:
    """Evaluate all arms on the held-out pairs, by the number of anchors of the fit."""
    found: Table = {}
    for count in COUNTS:
        draws = evidence.drawn(count)
        right = {arm.title: evidence.judged(arm, draws) for arm in evidence.all_arms()}
        found[str(count)] = table(evidence.standings(right))
    return found


def wire(evidence: ExperimentData) -> Table:
    """Return the bytes between the server and one client."""
    return dict(evidence.wire)


def without_parts(evidence: ExperimentData) -> Table:
    """Evaluate MoR without one of its parts."""
    draws = evidence.drawn()
    return table(
        evidence.standings({arm.title: evidence.judged(arm, draws) for arm in [*ablations(), MixtureOfRewards()]})
    )
