"""Table of clauses in docs/reward-contract.md, generated from the checks of ``mor-reward conformance``."""

from __future__ import annotations

from mor_reward.conformance import clause
from mor_reward.conformance.checks import CHECKS


def clauses() -> str:
    """Return name and clause of every check as a Markdown table."""
    rows = (f"| `{name}` | {clause(check)} |\n" for name, check in CHECKS.items())
    return "| check | clause |\n|---|---|\n" + "".join(rows)
