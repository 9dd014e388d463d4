"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from mor_core.wire import GroupReward

from mor_router.mathematics import loo_agreement
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.group_fusion import ObjectiveWeights
from mor_router.mathematics.regional_slopes import influences
from mor_router.mathematics.suspicion import Suspicion


class LiveSuspicion:
    """Suspicion of every client of the active gates, from the groups that this process rewarded."""

    def __init__(self) -> None:
        self._gates: dict[str, int] = {}
        self._clients: dict[str, dict[str, Suspicion]] = {}

    def suspects(self, objective: str, kind: tuple[str, ...]) -> frozenset[str]:
        """Return the clients that are suspected in groups of this kind."""
        known = self._clients.get(objective, {})
        return frozenset(client for client, suspicion in known.items() if suspicion.suspects(kind))

    def observe(
        self,
        objective: str,
        reward: GroupReward,
        weights: ObjectiveWeights,
        expected: Mapping[str, DriftBaseline],
        kind: tuple[str, ...],
    ) -> None:
        """Compare the clients of one rewarded group with their baselines; a new gate version starts anew."""
        if self._gates.get(objective) != reward.gate_version:
            self._gates[objective], self._clients[objective] = reward.gate_version, {}
        lines = [line for line in reward.clients if line.calibrated is not None and line.client in expected]
        if len(lines) < loo_agreement.LEAST_CLIENTS or len(reward.rewards) < 2:
            return
        shares = np.array([line.weight for line in lines])
        agreement = loo_agreement.of_group(np.array([line.calibrated for line in lines]), shares)
        slopes = np.array([weights.slopes.get(line.client, 0.0) for line in lines])
        influence = influences(shares[None], slopes[None])[0]
        for k, line in enumerate(lines):
            baseline = expected[line.client]
            if baseline.influence and baseline.least_agreement > 0:
                suspicion = self._clients[objective].setdefault(line.client, Suspicion(baseline.least_agreement))
                suspicion.add(float(agreement[k]), min(1.0, float(influence[k]) / baseline.influence), kind)
