"""How well policies answer by the programs that know the truth, and by how much MoR's is ahead of the others."""

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
"""The title of the taste that the clients were taught, taken as the reward."""
MARGIN = 2.0
"""Points that MoR's lower limit may be behind for it to count as not inferior."""
BASE = "base model"
_NO_RIVALS = (REFERENCE, BASE, GOLD, Oracle.title, OTHERS["central"])
"""Beside MoR and where it begins, what no server can have: the truth, or everybody's data."""


def compare(correct: Mapping[str, Float[ndarray, "runs questions"]], domains: Sequence[str]) -> dict[str, Any]:
    """Gold accuracy in %, mean over domains and by domain, and how far MoR is ahead in points, paired over questions.

    ``correct``: by arm, how much of each question's answers is right; all arms have MoR's runs, or one.
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


def verdict(found: Mapping[str, Any]) -> str:
    """Among what a server can have, how many arms MoR is shown not to be inferior to, and for which that is open."""
    rivals = {name: row for name, row in found.items() if name not in _NO_RIVALS}
    sentences = []
    for column, where in (("MoR ahead", "in the mean"), ("MoR ahead in the worst domain", "in the worst domain")):
        lows = {name: row[column]["low"] for name, row in rivals.items() if column in row}
        unclear = [name for name, low in lows.items() if low < -MARGIN]
        rest = f" (open: {', '.join(unclear)})" if unclear else ""
        if lows:
            sentences.append(f"{where} to {len(lows) - len(unclear)} of {len(lows)}{rest}")
    if not sentences:
        return "There is no rival to compare with."
    found = "; ".join(sentences)
    return f"With a margin of {MARGIN:g} points MoR is not inferior to the alternatives of a server, {found}."
