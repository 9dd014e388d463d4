"""Effect of the number of anchors and of their mix of domains."""

from __future__ import annotations

import numpy as np

from quality.arms import MixtureOfRewards, UniformRaw, baselines, without_support
from quality.evidence import ExperimentData, Table
from quality.group_scores import agreement

COUNTS = (16, 64, 256)
"""Numbers of anchors."""


def anchor_counts(evidence: ExperimentData) -> Table:
    """Compute accuracy by the number of anchors; without any, only the plain mean of the clients' logits exists."""
    draws = max(3, evidence.draws // 2)
    found: Table = {}
    for arm in [*baselines(), MixtureOfRewards()]:
        nothing = 100 * float(agreement(UniformRaw().fit(evidence.pool)(evidence.held_out)).mean())
        found[arm.title] = {"0": [nothing]}
        for count in COUNTS:
            right = evidence.judged(arm, evidence.drawn(count, draws=draws))
            found[arm.title][str(count)] = (100 * right.mean(axis=1)).tolist()
    return found


def other_mixes(evidence: ExperimentData) -> Table:
    """Evaluate a fit on anchors with four fifths of one domain on the other two, and one without a domain on
    that domain. Means over the domains, percent.
    """
    domains = np.array(evidence.held_out.domains)
    draws = max(2, evidence.draws // 4)
    found: Table = {}
    for arm in [*baselines(), without_support(), MixtureOfRewards()]:
        rare, unseen = [], []
        for domain in evidence.domains:
            most = {name: 0.8 if name == domain else 0.2 / (len(evidence.domains) - 1) for name in evidence.domains}
            right = evidence.judged(arm, evidence.drawn(shares=most, draws=draws))
            rare.append(float(right[:, domains != domain].mean()))
            none = {name: 0.0 if name == domain else 1 / (len(evidence.domains) - 1) for name in evidence.domains}
            right = evidence.judged(arm, evidence.drawn(shares=none, draws=draws))
            unseen.append(float(right[:, domains == domain].mean()))
        found[arm.title] = {"rare": 100 * float(np.mean(rare)), "unseen": 100 * float(np.mean(unseen))}
    return found
