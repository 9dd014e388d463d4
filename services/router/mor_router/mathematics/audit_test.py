"""Sequential test of audited groups: evidence that a client misleads live groups.

The expected accuracy at the fit says nothing here: pairs of a moving policy are harder or easier than the anchors. What
no policy changes is that a client that the gate trusts at an input is right there at least half of the time. With
d_p the client's standardised difference (preferred − other) of pair p of a group, u_k = w_k a_k / Σ_j w_j a_j its
influence at the group's input, over K clients with influence, and σ the input's support:

    y = Σ_p v_p y_p / Σ_p v_p        y_p = 1 where d_p > 0,   v_p = σ · min( K u_k, 1 ) · min( |d_p| / 2, 1 )

One group is one observation of an e-process (``e_process``) against the mean ½, with stake mean_p v_p, because pairs of
one group depend on each other. Differences of 0 have stake 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.drift_test import right
from mor_router.mathematics.e_process import log_evidence

_CHANCE = 0.5


@dataclass(frozen=True)
class AuditedGroup:
    """A labelled live group. A client that did not score it is missing from the mappings."""

    pairs: tuple[tuple[int, int], ...]
    """Indices of the preferred and of the other response, for each labelled pair."""
    scores: Mapping[str, Float[ndarray, " responses"]]
    """Standardised scores of each client, shadows included."""
    weights: Mapping[str, float]
    """Gate weight of each client at this input; 0 for a shadow."""
    slopes: Mapping[str, float]
    """Slope of each client at this input, logits per standardised unit; 0 for a shadow."""
    rewards: Float[ndarray, " responses"]
    """Fused rewards of the responses, logits."""
    probability: float = 1.0
    """Probability with which the group was chosen."""
    support: float = 1.0
    """1 where the anchors cover the input, towards 0 far from all of them: how far the fit vouches for the weights."""


@dataclass(frozen=True)
class AuditResult:
    """Evidence that one client misleads live groups."""

    log_evidence: float
    """log E, see ``e_process``: at log(1/alpha) and above the client misleads, with false-alarm rate alpha."""
    reason: str
    """What the audits say about the client, in words."""


def audit_result(groups: Sequence[AuditedGroup]) -> dict[str, AuditResult]:
    """Test every client of ``groups``, which are in order of arrival."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for group in groups:
        influence = _influence(group)
        for client, scores in group.scores.items():
            seen.setdefault(client, []).append(
                _observation(group.pairs, scores, group.support * influence.get(client, 0.0))
            )
    return {client: _result(np.array(found)) for client, found in sorted(seen.items())}


def _influence(group: AuditedGroup) -> dict[str, float]:
    """Compute min(K u, 1) of each client: 1 where all have the same."""
    parts = {client: group.weights[client] * group.slopes[client] for client in group.scores if client in group.weights}
    total, count = sum(parts.values()), sum(part > 0 for part in parts.values())
    return {client: min(1.0, count * part / total) for client, part in parts.items()} if total > 0 else {}


def _observation(
    pairs: Sequence[tuple[int, int]], scores: Float[ndarray, " responses"], influence: float
) -> tuple[float, float]:
    """Return outcome and stake of one group."""
    differences = np.array([scores[better] - scores[worse] for better, worse in pairs])
    stakes = influence * np.minimum(np.abs(differences) / 2, 1)
    total = float(stakes.sum())
    outcome = float(stakes @ right(differences) / total) if total > 0 else _CHANCE
    return outcome, total / len(pairs)


def _result(seen: Float[ndarray, "groups 2"]) -> AuditResult:
    outcomes, stakes = seen.T
    total = float(stakes.sum())
    agreement = float(stakes @ outcomes / total) if total > 0 else _CHANCE
    return AuditResult(
        log_evidence=max(0.0, float(log_evidence(outcomes, _CHANCE, stakes).max())),
        reason=f"right in {agreement:.0%} of {len(seen)} audited groups where it counts; chance is 50%",
    )
