"""Monitor of clients that agree with the others on anchors but not in live groups.

Disagreement shows that some client is wrong, not which one: a hostile majority would make an honest client disagree.
So it takes no weight. It writes to the log and the audit log, and sets a metric to alert on. It is the remaining way to
find a client that recognises even honeypots.
"""

from __future__ import annotations

import math

import structlog

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.mathematics import loo_agreement
from mor_router.mathematics.e_process import EProcess
from mor_router.mathematics.group_fusion import FusedGroup
from mor_router.mathematics.regional_slopes import influences
from mor_router.objectives.active_gates import ObjectivePart

log = structlog.get_logger(__name__)


class DisagreementMonitor:
    """One e-process for each client and gate version, over the groups that this process scored."""

    def __init__(self, audit: AuditLog, false_alarm: float) -> None:
        self._audit = audit
        self._threshold = -math.log(false_alarm)
        self._processes: dict[str, dict[str, EProcess]] = {}
        self._versions: dict[str, int] = {}
        self._reported: dict[str, set[str]] = {}
        """Objective -> clients reported under its gate version."""

    def observe(self, part: ObjectivePart, group: FusedGroup) -> None:
        """Test one group that was rewarded for one fitted objective."""
        if part.objective is None or not part.expected or len(group.clients) < loo_agreement.LEAST_CLIENTS:
            return
        if group.calibrated.shape[1] < 2:
            return
        name = part.objective.name
        if self._versions.get(name) != part.version:
            self._versions[name], self._processes[name], self._reported[name] = part.version, {}, set()
        agreement = loo_agreement.of_group(group.calibrated, group.weights)
        influence = influences(group.weights[None, :], group.slopes[None, :])[0]
        for k, client in enumerate(group.clients):
            baseline = part.expected.get(client)
            if baseline is None or not baseline.influence or baseline.least_agreement <= 0:
                continue
            process = self._processes[name].setdefault(client, EProcess(baseline.least_agreement))
            process.add(float(agreement[k]), min(1.0, float(influence[k]) / baseline.influence))
            metrics.DISAGREES.labels(client).set(process.log_evidence / math.log(10))
            if process.log_evidence >= self._threshold and client not in self._reported[name]:
                self._reported[name].add(client)
                self._report(client, name, part.version, process)

    def _report(self, client: str, objective: str, version: int, process: EProcess) -> None:
        reason = (
            f"agrees with the others less in live groups than on the anchors of gate version {version} "
            f"({process.count} groups, evidence 10^{process.log_evidence / math.log(10):.1f})"
        )
        self._audit.record("disagreement", client, "router", objective=objective, reason=reason)
        log.warning("a client disagrees with the others about live groups", client=client, reason=reason)
