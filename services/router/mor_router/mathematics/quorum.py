"""Quorum of a group: the least share of its gate weight that must belong to clients that scored it.

Deviation from MoR (arXiv 2602.00485), which does not treat failures: with g_jk the gate weights of objective j, S the
clients that scored every response, and D those that answered and have no score for the group,

    the group is rewarded  ⇔  min_j Σ_{k ∈ S} g_jk / ( 1 − Σ_{k ∈ D} g_jk ) ≥ quorum

Without this rule a group that lost its expert would be rewarded by clients that know nothing of it. A client in D is
not lost: that it cannot judge the group is its answer, and it counts for nobody but itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_ROUNDING = 1e-9
"""Slack for the rounding error of a sum of weights."""


@dataclass(frozen=True)
class NoQuorum:
    """Too little of the gate weight of one objective belongs to clients that scored the group."""

    held: float
    """Share of the gate weight that is left, for the objective that lost most."""


def missing_quorum(
    gates: Float[ndarray, "objectives clients"], declined: Float[ndarray, " objectives"], quorum: float
) -> NoQuorum | None:
    """Return the remaining share of a group's gate weight, if it is too little to reward the group.

    ``gates``: weights of the clients that scored the group, which sum to 1 for each objective if all of them did.
    ``declined``: weight of the clients that answered and have no score for the group.
    """
    held = gates.sum(axis=1)
    left = float((held / np.maximum(held, 1 - declined).clip(min=_ROUNDING)).min())
    return NoQuorum(left) if held.min() <= 0 or left < quorum - _ROUNDING else None
