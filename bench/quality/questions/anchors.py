"""How many anchors are needed, and what becomes of another mix of domains than theirs."""

from __future__ import annotations

import numpy as np

from quality.arms import MixtureOfRewards, UniformRaw, baselines, without_reach
from quality.evidence import Evidence, Table
from quality.population import SKILLS
from quality.scored import agreement

COUNTS = (16, 64, 256)


def anchor_counts(evidence: Evidence) -> Table:
    """Accuracy by the number of anchors; without any, the plain mean of the clients' own logits is all there is."""
    draws = max(3, evidence.draws // 2)
    found: Table = {}
    for arm in [*baselines(), MixtureOfRewards()]:
        nothing = 100 * float(agreement(UniformRaw().fit(evidence.pool)(evidence.held_out)).mean())
        found[arm.title] = {"0": [nothing]}
        for count in COUNTS:
            right = evidence.judged(arm, evidence.drawn(count, draws=draws))
            found[arm.title][str(count)] = (100 * right.mean(axis=1)).tolist()
    return found


def other_mixes(evidence: Evidence) -> Table:
    """Fitted on anchors of which four fifths are of one domain, judged on the other two; and without any of one domain,
    judged on that one. Means over the domains, percent.
    """
    domains = np.array(evidence.held_out.domains)
    draws = max(2, evidence.draws // 4)
    found: Table = {}
    for arm in [*baselines(), without_reach(), MixtureOfRewards()]:
        rare, unseen = [], []
        for domain in SKILLS:
            most = {name: 0.8 if name == domain else 0.2 / (len(SKILLS) - 1) for name in SKILLS}
            right = evidence.judged(arm, evidence.drawn(shares=most, draws=draws))
            rare.append(float(right[:, domains != domain].mean()))
            none = {name: 0.0 if name == domain else 1 / (len(SKILLS) - 1) for name in SKILLS}
            right = evidence.judged(arm, evidence.drawn(shares=none, draws=draws))
            unseen.append(float(right[:, domains == domain].mean()))
        found[arm.title] = {"rare": 100 * float(np.mean(rare)), "unseen": 100 * float(np.mean(unseen))}
    return found
