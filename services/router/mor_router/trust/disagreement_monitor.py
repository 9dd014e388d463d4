"""Monitor of clients that agree with the others on anchors but not in live groups.

Disagreement shows that some client is wrong, not which one: a hostile majority would make an honest client disagree.
So it takes no weight. It writes to the log and the audit log, and sets a metric to alert on. It is the remaining way to
find a client that recognises even honeypots.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import structlog

from mor_router import metrics
from mor_router.audit import AuditLog
from mor_router.mathematics.e_process import EProcess
from mor_router.mathematics.live_agreement import LiveAgreement

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

    def observe(self, objective: str, gate_version: int, agreements: Sequence[LiveAgreement]) -> None:
        """Test the clients of one group that was rewarded for one fitted objective."""
        if self._versions.get(objective) != gate_version:
            self._versions[objective], self._processes[objective] = gate_version, {}
            self._reported[objective] = set()
        known, reported = self._processes[objective], self._reported[objective]
        for line in agreements:
            process = known.get(line.client) or known.setdefault(line.client, EProcess(line.least))
            process.add(line.agreement, line.stake)
            evidence = process.log_evidence
            metrics.DISAGREES.labels(line.client).set(evidence / math.log(10))
            if evidence >= self._threshold and line.client not in reported:
                reported.add(line.client)
                self._report(line.client, objective, gate_version, process)

    def _report(self, client: str, objective: str, version: int, process: EProcess) -> None:
        reason = (
            f"agrees with the others less in live groups than on the anchors of gate version {version} "
            f"({process.count} groups, evidence 10^{process.log_evidence / math.log(10):.1f})"
        )
        self._audit.record("disagreement", client, "router", objective=objective, reason=reason)
        log.warning("a client disagrees with the others about live groups", client=client, reason=reason)
