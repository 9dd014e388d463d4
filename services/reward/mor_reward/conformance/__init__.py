"""Does an endpoint keep the reward contract? One named check for each clause, run against the running service."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mor_reward.conformance.checks import CHECKS
from mor_reward.conformance.endpoint import Broken, Endpoint, Skipped


@dataclass(frozen=True)
class Finding:
    """What became of one check."""

    check: str
    clause: str
    """What the contract asks for."""
    outcome: Literal["kept", "broken", "skipped"]
    detail: str
    """What was got where the clause is broken, and why it could not be tried where it was skipped."""


def clause(check: Callable[[Endpoint], None]) -> str:
    """What the contract asks for: the check's docstring."""
    return " ".join((check.__doc__ or "").split())


def examine(endpoint: Endpoint) -> Iterator[Finding]:
    """Every check in turn.

    Raises:
        Unavailable: nobody answers at the endpoint's address.
    """
    endpoint.reach()
    for name, check in CHECKS.items():
        asked = clause(check)
        try:
            check(endpoint)
        except Broken as broken:
            yield Finding(name, asked, "broken", str(broken))
        except Skipped as skipped:
            yield Finding(name, asked, "skipped", str(skipped))
        else:
            yield Finding(name, asked, "kept", "")
