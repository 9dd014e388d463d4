"""Clients that agree with the others about anchors and not about live groups: told, and no more.

Disagreement says that somebody is wrong, not who: a hostile majority would make an honest client disagree. So it takes
nobody's weight; it is a line in the log and the audit log, and a metric to alert on. It is what remains to find a
client that knows even interleaved anchors.
"""

from __future__ import annotations

import math

import structlog

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.mathematics import loo_agreement
from mor_router.mathematics.drift_test import influences
from mor_router.mathematics.e_process import Bet
from mor_router.mathematics.fuse import Fused
from mor_router.objectives.active_gates import ObjectivePart

log = structlog.get_logger(__name__)


class Agreement:
    """One sequential test for each client and gate version, of the groups that this process scored."""

    def __init__(self, audit: AuditLog, false_alarm: float) -> None:
        self._audit = audit
        self._threshold = -math.log(false_alarm)
        self._bets: dict[str, dict[str, Bet]] = {}
        self._versions: dict[str, int] = {}
        self._told: set[tuple[int, str]] = set()

    def note(self, part: ObjectivePart, group: Fused) -> None:
        """Look at one group that was rewarded for one fitted objective."""
        if part.objective is None or not part.expected or len(group.clients) < loo_agreement.LEAST_CLIENTS:
            return
        if group.calibrated.shape[1] < 2:
            return
        name = part.objective.name
        if self._versions.get(name) != part.version:
            self._versions[name], self._bets[name] = part.version, {}
        agrees = loo_agreement.of_group(group.calibrated, group.weights)
        influence = influences(group.weights[None, :], group.slopes[None, :])[0]
        for k, client in enumerate(group.clients):
            expected = part.expected.get(client)
            if expected is None or not expected.influence or expected.least_concord <= 0:
                continue
            bet = self._bets[name].setdefault(client, Bet(expected.least_concord))
            bet.add(float(agrees[k]), min(1.0, float(influence[k]) / expected.influence))
            metrics.DISAGREES.labels(client).set(bet.log_evidence / math.log(10))
            if bet.log_evidence >= self._threshold and (part.version, client) not in self._told:
                self._told.add((part.version, client))
                self._tell(client, name, part.version, bet)

    def _tell(self, client: str, objective: str, version: int, bet: Bet) -> None:
        reason = (
            f"agrees with the others less in live groups than on the anchors of gate version {version} "
            f"({bet.count} groups, evidence 10^{bet.log_evidence / math.log(10):.1f})"
        )
        self._audit.record("disagreement", client, "router", objective=objective, reason=reason)
        log.warning("a client disagrees with the others about live groups", client=client, reason=reason)
