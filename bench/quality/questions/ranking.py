"""Which arm ranks held-out pairs best, who the clients are, what they cost, and which part of MoR is worth what."""

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


COUNTS = (64, 256)


def ranking(evidence: Evidence) -> Table:
    """All arms on the held-out pairs, by the number of anchors that they are fitted on."""
    found: Table = {}
    for count in COUNTS:
        draws = evidence.drawn(count)
        right = {arm.title: evidence.judged(arm, draws) for arm in evidence.all_arms()}
        found[str(count)] = table(evidence.standings(right))
    return found


def wire(evidence: Evidence) -> Table:
    """Bytes between the server and one client."""
    return dict(evidence.wire)


def without_parts(evidence: Evidence) -> Table:
    """MoR with one of its parts taken away."""
    draws = evidence.drawn()
    return table(
        evidence.standings({arm.title: evidence.judged(arm, draws) for arm in [*ablations(), MixtureOfRewards()]})
    )
