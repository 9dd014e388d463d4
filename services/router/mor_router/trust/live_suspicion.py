"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

from collections.abc import Sequence

from mor_router.mathematics.live_agreement import LiveAgreement
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
        self, objective: str, gate_version: int, agreements: Sequence[LiveAgreement], kind: tuple[str, ...]
    ) -> None:
        """Update the suspicion of the clients of one rewarded group; a new gate version starts anew."""
        if self._gates.get(objective) != gate_version:
            self._gates[objective], self._clients[objective] = gate_version, {}
        known = self._clients[objective]
        for line in agreements:
            suspicion = known.get(line.client) or known.setdefault(line.client, Suspicion(line.least))
            suspicion.add(line.agreement, line.stake, kind)
