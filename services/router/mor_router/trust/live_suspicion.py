"""Suspicion of clients in live groups, by objective and gate version; it decides where audits are drawn."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights
from mor_router.mathematics.loo_agreement import LEAST_CLIENTS
from mor_router.mathematics.opposition import cosines, stakes
from mor_router.mathematics.suspicion import Suspicion, suspects
from mor_router.objectives.objective_store import COLD_START

_COMPLETE = 0.8
"""Share of the gate's weight that the clients of a group hold, where discord is counted. The fit's disagreement is with
all clients. Were it to be all of them, a client that declines groups would protect another one from suspicion."""


class LiveSuspicion:
    """Suspicion of every client of the active gates, from the groups that this process rewarded."""

    def __init__(self) -> None:
        self._gates: dict[str, int] = {}
        self._clients: dict[str, dict[str, Suspicion]] = {}
        self._lost: dict[str, set[str]] = {}
        """Clients of the fit that had no weight since, by objective."""

    def suspects(self, objective: str, kind: tuple[str, ...], answered: Collection[str]) -> frozenset[str]:
        """Return the clients that are suspected in a group of this kind, of those that ``answered`` it.

        One that misbehaves and then declines all groups would keep the suspicion of discord from the others.
        """
        known = self._clients.get(objective, {})
        return suspects({client: known[client] for client in answered if client in known}, kind)

    def observe(
        self,
        objective: str,
        gate_version: int,
        group: FusedGroup,
        *,
        weights: ObjectiveWeights,
        kind: tuple[str, ...],
        expected: Mapping[str, DriftBaseline],
    ) -> None:
        """Compare the clients of one rewarded group with each other; a new gate version starts anew.

        ``expected``: the gate's baseline of each client.

        Under the cold start there is no suspicion: a specialist may oppose the others outside its domain.
        """
        if self._gates.get(objective) != gate_version:
            self._gates[objective], self._clients[objective], self._lost[objective] = gate_version, {}, set()
        if gate_version == COLD_START or len(group.clients) < LEAST_CLIENTS or len(group.rewards) < 2:
            return
        known = self._clients[objective]
        own = [known.get(name) or known.setdefault(name, _suspicion(expected.get(name))) for name in group.clients]
        fitted = {client for client, baseline in expected.items() if baseline.influence}
        lost = fitted - weights.weights.keys() - self._lost[objective]
        if lost:  # once for each client, so that one that changes its model to and fro clears nobody
            self._lost[objective] |= lost
            for suspicion in known.values():
                suspicion.forget_discord()
        observe(group, dict(zip(group.clients, own, strict=True)), kind, complete=is_complete(group, weights))


def is_complete(group: FusedGroup, weights: ObjectiveWeights) -> bool:
    """Return whether those who answered hold so much of the gate's weight that discord can be told from the fit's."""
    return sum(weights.fit_weights.get(client, 0.0) for client in group.clients) >= _COMPLETE


def observe(
    group: FusedGroup,
    suspicions: Mapping[str, Suspicion],
    kind: tuple[str, ...],
    *,
    complete: bool,
) -> None:
    """Count the agreement of the clients of a group with each other.

    Discord is counted where the group is ``complete`` (``is_complete``).
    """
    own = [suspicions[client] for client in group.clients]
    parts = group.weights[:, None] * group.calibrated
    under = suspects(suspicions, kind)
    suspected = np.array([client in under for client in group.clients])
    nobody = np.zeros(len(own), dtype=bool)
    against = zip(own, cosines(parts, suspected).tolist(), stakes(group.influence, suspected).tolist(), strict=True)
    among = zip(own, cosines(parts, nobody).tolist(), stakes(group.influence, nobody).tolist(), strict=True)
    for suspicion, cosine, stake in against:
        suspicion.oppose(cosine, stake, kind)
    for suspicion, cosine, stake in among if complete else ():
        suspicion.disagree(cosine, stake, kind)


def _suspicion(baseline: DriftBaseline | None) -> Suspicion:
    return Suspicion(None if baseline is None else baseline.disagreement)
