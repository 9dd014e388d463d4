"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

import numpy as np

from mor_router.mathematics.group_fusion import FusedGroup
from mor_router.mathematics.loo_agreement import LEAST_CLIENTS
from mor_router.mathematics.opposition import opposes, stakes
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

    def observe(self, objective: str, gate_version: int, group: FusedGroup, kind: tuple[str, ...]) -> None:
        """Compare the clients of one rewarded group with each other; a new gate version starts anew.

        Under the cold start there is no suspicion: a specialist may oppose the others outside its domain.
        """
        if self._gates.get(objective) != gate_version:
            self._gates[objective], self._clients[objective] = gate_version, {}
        if gate_version == COLD_START or len(group.clients) < LEAST_CLIENTS or len(group.rewards) < 2:
            return
        known = self._clients[objective]
        own = [known.get(client) or known.setdefault(client, Suspicion()) for client in group.clients]
        suspected = np.array([suspicion.suspects(kind) for suspicion in own])
        against = opposes(group.weights[:, None] * group.calibrated, suspected)
        stake = stakes(group.influence, suspected)
        for suspicion, opposed, worth in zip(own, against.tolist(), stake.tolist(), strict=True):
            suspicion.add(opposed, worth, kind)
