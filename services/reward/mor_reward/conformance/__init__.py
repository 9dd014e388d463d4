"""Conformance checks of the reward contract: one named check for each clause, run against a running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mor_reward.conformance.checks import CHECKS
from mor_reward.conformance.endpoint import CheckSkipped, ClauseBroken, Endpoint


@dataclass(frozen=True)
class CheckResult:
    """Result of one check."""

    check: str
    clause: str
    """Requirement of the contract."""
    outcome: Literal["kept", "broken", "skipped"]
    detail: str
    """Response of the endpoint if the clause is broken; reason if the check was skipped."""


def clause(check: Callable[[Endpoint], None]) -> str:
    """Return the requirement of the contract, which is the check's docstring."""
    return " ".join((check.__doc__ or "").split())


def run_checks(endpoint: Endpoint) -> Iterator[CheckResult]:
    """Run every check in turn.

    Raises:
        Unavailable, Invalid, Unauthorized: see ``Endpoint.check_reachable``.
    """
    endpoint.check_reachable()
    for name, check in CHECKS.items():
        requirement = clause(check)
        try:
            check(endpoint)
        except ClauseBroken as broken:
            yield CheckResult(name, requirement, "broken", str(broken))
        except CheckSkipped as skipped:
            yield CheckResult(name, requirement, "skipped", str(skipped))
        else:
            yield CheckResult(name, requirement, "kept", "")
