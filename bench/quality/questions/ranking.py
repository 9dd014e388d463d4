"""Which arm ranks held-out pairs best, who the clients are, and which part of MoR is worth what."""

from __future__ import annotations

import numpy as np

from quality.arms import MixtureOfRewards, ablations
from quality.evidence import Evidence, Table, table
from quality.scored import agreement


def clients(evidence: Evidence) -> Table:
    """Each client's accuracy on each sub-skill, percent."""
    right, skills = agreement(evidence.held_out.scores), np.array(evidence.held_out.skills)
    found = {
        client: {skill: 100 * float(right[skills == skill, k].mean()) for skill in sorted(set(skills.tolist()))}
        for k, client in enumerate(evidence.clients)
    }
    return {client: row | {"all": 100 * float(right[:, k].mean())} for k, (client, row) in enumerate(found.items())}


def ranking(evidence: Evidence) -> Table:
    """All arms on the held-out pairs, fitted on 64 anchors."""
    draws = evidence.drawn()
    return table(evidence.standings({arm.title: evidence.judged(arm, draws) for arm in evidence.all_arms()}))


def without_parts(evidence: Evidence) -> Table:
    """MoR with one of its parts taken away."""
    draws = evidence.drawn()
    return table(
        evidence.standings({arm.title: evidence.judged(arm, draws) for arm in [*ablations(), MixtureOfRewards()]})
    )
