"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

import numpy as np
from mor_core.wire import GroupReward

from mor_router.mathematics.group_fusion import ObjectiveWeights
from mor_router.mathematics.loo_agreement import LEAST_CLIENTS
from mor_router.mathematics.opposition import opposes, stakes
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

    def observe(self, objective: str, reward: GroupReward, weights: ObjectiveWeights, kind: tuple[str, ...]) -> None:
        """Compare the clients of one rewarded group with each other; a new gate version starts anew.

        Under the cold start there is no suspicion: a specialist may oppose the others outside its domain.
        """
        if self._gates.get(objective) != reward.gate_version:
            self._gates[objective], self._clients[objective] = reward.gate_version, {}
        lines = [line for line in reward.clients if line.calibrated is not None]
        if reward.gate_version == COLD_START or len(lines) < LEAST_CLIENTS or len(reward.rewards) < 2:
            return
        clients = self._clients[objective]
        shares = np.array([line.weight for line in lines])
        slopes = np.array([weights.slopes.get(line.client, 0.0) for line in lines])
        own = [clients.setdefault(line.client, Suspicion()) for line in lines]
        suspected = np.array([suspicion.suspects(kind) for suspicion in own])
        against = opposes(shares[:, None] * np.array([line.calibrated for line in lines]), suspected)
        stake = stakes(influences(shares[None], slopes[None])[0], suspected)
        for suspicion, opposed, worth in zip(own, against.tolist(), stake.tolist(), strict=True):
            suspicion.add(opposed, worth, kind)
