"""Quorum of a group: the least share of its gate weight that must belong to clients that scored it.

Deviation from MoR (arXiv 2602.00485), which does not treat failures: with g_jk the gate weights of objective j over the
clients k that scored every response,

    the group is rewarded  ⇔  min_j Σ_k g_jk ≥ quorum

Without this rule a group that lost its expert would be rewarded by clients that know nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from numpy import ndarray

_ROUNDING = 1e-9
"""Slack for the rounding error of a sum of weights."""


@dataclass(frozen=True)
class NoQuorum:
    """Too little of the gate weight of one objective belongs to clients that scored the group."""

    held: float
    """Gate weight that is left, for the objective that lost most."""


def missing_quorum(gates: Float[ndarray, "objectives clients"], quorum: float) -> NoQuorum | None:
    """Return the remaining gate weight of a group, if it is too little to reward the group.

    ``gates``: weights of the clients that scored the group, which sum to 1 for each objective if all of them did.
    """
    held = float(gates.sum(axis=1).min())
    return NoQuorum(held) if held <= 0 or held < quorum - _ROUNDING else None
