"""Fusion of one group: from the clients' raw scores to rewards, or to a missing quorum.

Deviation from MoR (arXiv 2602.00485): a client that fails for one response is left out of the whole group, the weights
are renormalised over the others, and a group without a ``quorum`` gets no reward.

A group is rewarded for one objective or for a blend of J. Each objective j has its own gate weights w_jk, slopes a_jk
and standardised scores s̃_jki, so calibrated scores c_jki = a_jk s̃_jki. The blend is a mixture of mixtures:

    W_k = Σ_j α_j w_jk          c_ki = Σ_j α_j w_jk c_jki / W_k          so that  Σ_k W_k c_ki = Σ_j α_j R_ji

This is exact with the default fusion; the other strategies receive W and c.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics import gate
from mor_router.mathematics.fusion import FusionStrategy, GroupDeviations
from mor_router.mathematics.quorum import NoQuorum, missing_quorum
from mor_router.mathematics.regional_slopes import influences
from mor_router.mathematics.standardise import Standardiser, median, standardise_group
from mor_router.mathematics.suspect_limit import limits


@dataclass(frozen=True)
class ObjectiveWeights:
    """Gate weights and slopes of the clients under one objective, for one input."""

    share: float
    """The objective's share of the reward; the shares of a group sum to 1."""
    weights: Mapping[str, float]
    """Gate weight of each weighted client; sums to 1."""
    slopes: Mapping[str, float]
    """Slopes of the same clients, logits per standardised unit."""
    ood_score: float = 0.0
    """0 where the anchors cover the input, towards 1 far from all of them, see ``support``."""
    fit_weights: Mapping[str, float] = field(default_factory=dict)
    """Gate weights of the same clients over all clients of the gate, those without weight now included."""


def blended_weights(objective_weights: Sequence[ObjectiveWeights]) -> dict[str, float]:
    """Compute Σ_j α_j w_jk of each weighted client, before any failure; sums to 1."""
    total: dict[str, float] = {}
    for objective in objective_weights:
        for client, weight in objective.weights.items():
            total[client] = total.get(client, 0.0) + objective.share * weight
    return total


def blended_slopes(objective_weights: Sequence[ObjectiveWeights]) -> dict[str, float]:
    """Compute each client's slope as the mean over objectives by weight; 0 for a client with weight 0."""
    weights = blended_weights(objective_weights)
    evidence = dict.fromkeys(weights, 0.0)
    for objective in objective_weights:
        for client, weight in objective.weights.items():
            evidence[client] += objective.share * weight * objective.slopes.get(client, 0.0)
    return {client: evidence[client] / weight if weight else 0.0 for client, weight in weights.items()}


def ood_score(objective_weights: Sequence[ObjectiveWeights]) -> float:
    """Compute the mean of ν over objectives by share."""
    return sum(objective.share * objective.ood_score for objective in objective_weights)


@dataclass(frozen=True)
class FusedGroup:
    """Rewards of a group, and each client's part in them."""

    rewards: Float[ndarray, " group"]
    """Logits. Differences within the group carry the preference; the level is the mixture of the clients' levels."""
    clients: tuple[str, ...]
    """Clients that scored every response of the group, in the order of the arrays below."""
    weights: Float[ndarray, " clients"]
    """W, renormalised over these clients within each objective."""
    slopes: Float[ndarray, " clients"]
    """Mean over objectives by weight, logits per standardised unit."""
    influence: Float[ndarray, " clients"]
    """Share of each client in Σ_k W_k a_k, as the gate has it: no limit on a suspect changes it."""
    standardised: Float[ndarray, "clients group"]
    """Mean over objectives by weight."""
    calibrated: Float[ndarray, "clients group"]
    entropy: float
    """Entropy of the weights, nats."""
    disagreement: float
    """Weighted standard deviation over clients of a response's calibrated deviation, mean over responses, logits."""


def fuse(
    raw: Mapping[str, Sequence[float]],
    *,
    objective_weights: Sequence[ObjectiveWeights],
    standardisers: Sequence[Mapping[str, Standardiser]],
    fusion: FusionStrategy,
    quorum: float,
    declined: Collection[str] = (),
    suspects: Collection[str] = (),
) -> FusedGroup | NoQuorum:
    """Fuse the raw scores of one group.

    ``raw`` holds the clients that scored every response of the group, ``declined`` those that answered and have no
    scores for it. ``standardisers`` match ``objective_weights`` one by one; each contains the weighted clients of that
    objective that are in ``raw``. The say of ``suspects`` is limited (``suspect_limit``).
    """
    clients = tuple(client for client in blended_weights(objective_weights) if client in raw)
    gates = np.array([[o.weights.get(client, 0.0) for client in clients] for o in objective_weights])
    without = np.array([sum(o.weights.get(client, 0.0) for client in declined) for o in objective_weights])
    if (missing := missing_quorum(gates, without, quorum)) is not None:
        return missing
    held = gates.sum(axis=1)
    shares = np.array([o.share for o in objective_weights])[:, None] * gates / held[:, None]
    weights = shares.sum(axis=0)
    part = np.divide(shares, weights, out=np.zeros_like(shares), where=weights > 0)
    scores = np.array([raw[client] for client in clients], dtype=float)
    units = np.zeros((len(objective_weights), *scores.shape))
    for j, objective in enumerate(objective_weights):
        known = [k for k, client in enumerate(clients) if client in objective.weights]
        units[j, known] = standardise_group([standardisers[j][clients[k]] for k in known], scores[known])
    slopes = np.array([[o.slopes.get(client, 0.0) for client in clients] for o in objective_weights])
    calibrated = (part[:, :, None] * (slopes[:, :, None] * units)).sum(axis=0)
    level = median(calibrated)
    deviations = calibrated - level
    slope = (part * slopes).sum(axis=0)
    influence = influences(weights[None], slope[None])[0]
    if not {*clients}.isdisjoint(suspects):
        suspected = np.array([client in suspects for client in clients])
        factors = limits(weights[:, None] * deviations, influence, suspected)
        deviations *= factors[:, None]
        calibrated = level + deviations
        slope *= factors
    mean = weights @ deviations
    return FusedGroup(
        rewards=fusion(GroupDeviations(deviations, weights)) + weights @ level[:, 0],
        clients=clients,
        weights=weights,
        slopes=slope,
        influence=influence,
        standardised=(part[:, :, None] * units).sum(axis=0),
        calibrated=calibrated,
        entropy=float(gate.entropy(weights)),
        disagreement=float(np.sqrt(weights @ np.square(deviations - mean)).mean()),
    )
