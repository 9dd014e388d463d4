"""Gold accuracy of policies, and the lead of MoR's policy over the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.arms import Oracle
from quality.evidence import OTHERS, REFERENCE
from quality.ranking import lead

GOLD = "gold itself"
"""Title of the clients' taste when it is the reward itself."""
MARGIN = 2.0
"""Margin of non-inferiority: points by which MoR's lower limit may be behind."""
BASE = "base model"
_NO_RIVALS = (REFERENCE, BASE, GOLD, Oracle.title, OTHERS["central"])
"""Arms that are no rivals: MoR, its starting point, and those that need the truth or all clients' data."""


def compare(correct: Mapping[str, Float[ndarray, "runs questions"]], domains: Sequence[str]) -> dict[str, Any]:
    """Compute gold accuracy in %, mean and by domain, and MoR's lead in points, paired over questions.

    ``correct``: by arm, the correct fraction of each question's answers; all arms have MoR's runs, or one.
    """
    of = np.array(domains)
    found = {}
    for title, values in correct.items():
        runs = {name: 100 * values[:, of == name].mean(axis=1) for name in sorted(set(domains))}
        by_domain = {name: float(levels.mean()) for name, levels in runs.items()}
        ahead = lead(correct[REFERENCE], values, domains)
        found[title] = {
            "accuracy": float(np.mean(list(by_domain.values()))),
            "worst": min(by_domain.values()),
            "domains": by_domain,
            "runs": {name: levels.tolist() for name, levels in runs.items()},
            "MoR ahead": asdict(ahead.mean),
            "MoR ahead in the worst domain": asdict(ahead.worst),
        }
    return found


def conclusion(found: Mapping[str, Any]) -> str:
    """State to how many feasible arms MoR is shown to be non-inferior, and for which this is open."""
    rivals = {name: row for name, row in found.items() if name not in _NO_RIVALS}
    parts = []
    for column, where in (("MoR ahead", "in the mean"), ("MoR ahead in the worst domain", "in the worst domain")):
        lows = {name: row[column]["low"] for name, row in rivals.items() if column in row}
        unclear = [name for name, low in lows.items() if low < -MARGIN]
        rest = f" (open: {', '.join(unclear)})" if unclear else ""
        if lows:
            parts.append(f"{where} to {len(lows) - len(unclear)} of {len(lows)}{rest}")
    if not parts:
        return "There is no rival to compare with."
    return (
        f"With a margin of {MARGIN:g} points MoR is not inferior to the alternatives of a server, {'; '.join(parts)}."
    )
