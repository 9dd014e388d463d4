"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights
from mor_router.mathematics.loo_agreement import LEAST_CLIENTS
from mor_router.mathematics.opposition import cosines, stakes
from mor_router.mathematics.regional_slopes import influences
from mor_router.mathematics.suspicion import Suspicion
from mor_router.objectives.objective_store import COLD_START


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
        gate_version: int,
        group: FusedGroup,
        weights: ObjectiveWeights,
        kind: tuple[str, ...],
        expected: Mapping[str, DriftBaseline],
    ) -> None:
        """Compare the clients of one rewarded group with each other; a new gate version starts anew.

        ``expected``: the gate's baseline of each client.

        Under the cold start there is no suspicion: a specialist may oppose the others outside its domain.
        """
        if self._gates.get(objective) != gate_version:
            self._gates[objective], self._clients[objective] = gate_version, {}
        if gate_version == COLD_START or len(group.clients) < LEAST_CLIENTS or len(group.rewards) < 2:
            return
        known = self._clients[objective]
        own = [known.get(name) or known.setdefault(name, _suspicion(expected.get(name))) for name in group.clients]
        suspected = np.array([suspicion.suspects(kind) for suspicion in own])
        agreement = cosines(group.weights[:, None] * group.calibrated, suspected)
        slopes = np.array([weights.slopes.get(client, 0.0) for client in group.clients])
        stake = stakes(influences(group.weights[None], slopes[None])[0], suspected)
        fitted = {client for client, baseline in expected.items() if baseline.influence}
        unlike = len(fitted - {*group.clients}) + suspected.sum() - suspected
        for suspicion, cosine, worth, others in zip(own, agreement.tolist(), stake.tolist(), unlike, strict=True):
            suspicion.add(cosine, worth, kind, as_at_fit=not others)


def _suspicion(baseline: DriftBaseline | None) -> Suspicion:
    return Suspicion(None if baseline is None else baseline.disagreement)
