"""One group: from the answers that came to a reward, or to the reason why there is none.

A group is rewarded for one objective or for a blend of J. Each objective j has gate weights w_jk, slopes a_jk and
standardised scores s̃_jki of its own, so calibrated scores c_jki = a_jk s̃_jki, and the blend is a mixture of mixtures:

    W_k = Σ_j α_j w_jk          c_ki = Σ_j α_j w_jk c_jki / W_k          so that  Σ_k W_k c_ki = Σ_j α_j R_ji

with the default fusion, exactly; the other strategies get W and c.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics import gate
from mor_router.mathematics.fusion import Fusion, Panel
from mor_router.mathematics.standardise import Standardiser


@dataclass(frozen=True)
class Lens:
    """How one objective sees the clients, for one input."""

    share: float
    """The shares of a group's lenses sum to 1."""
    weights: Mapping[str, float]
    """Gate weight of each voter; sums to 1."""
    slopes: Mapping[str, float]
    """Of the same voters, logits per standardised unit."""
    beyond: float = 0.0
    """How far the input is beyond the anchors, 0 to 1, see ``reach``."""


def combined(lenses: Sequence[Lens]) -> dict[str, float]:
    """Σ_j α_j w_jk of each voter: what a group's gate weighs before any failure. Sums to 1."""
    total: dict[str, float] = {}
    for lens in lenses:
        for client, weight in lens.weights.items():
            total[client] = total.get(client, 0.0) + lens.share * weight
    return total


def beyond(lenses: Sequence[Lens]) -> float:
    """How far a group's input is beyond the anchors, mean over objectives by share."""
    return sum(lens.share * lens.beyond for lens in lenses)


@dataclass(frozen=True)
class Fused:
    rewards: Float[ndarray, " group"]
    """Logits. Differences within the group carry the preference; the level is the mixture of the clients' levels."""
    clients: tuple[str, ...]
    """Those that answered all of the group, in the order of the arrays below."""
    weights: Float[ndarray, " clients"]
    """W, renormalised over them within each objective."""
    slopes: Float[ndarray, " clients"]
    """Mean over objectives by weight, logits per standardised unit."""
    standardised: Float[ndarray, "clients group"]
    """Mean over objectives by weight."""
    calibrated: Float[ndarray, "clients group"]
    entropy: float
    """Of the weights, nats."""
    disagreement: float
    """Weighted standard deviation over clients of a response's calibrated deviation, mean over responses, logits."""


@dataclass(frozen=True)
class NoQuorum:
    """The clients that answered held too little of the group's gate weight for one of its objectives: losing the expert
    must not hand the group to the ignorant."""

    held: float
    """For the objective that lost most."""


def fuse(
    raw: Mapping[str, Sequence[float]],
    *,
    lenses: Sequence[Lens],
    standardisers: Sequence[Mapping[str, Standardiser]],
    fusion: Fusion,
    quorum: float,
) -> Fused | NoQuorum:
    """``raw`` holds the clients that answered every response of the group; a client that failed for one is not in it.

    ``standardisers`` go with ``lenses`` one by one; each has at least the lens's voters that are in ``raw``.
    """
    clients = tuple(client for client in combined(lenses) if client in raw)
    trust = np.array([[lens.weights.get(client, 0.0) for client in clients] for lens in lenses])
    held = trust.sum(axis=1)
    if not clients or held.min() <= 0 or held.min() < quorum - 1e-9:
        return NoQuorum(float(held.min()))
    voices = np.array([lens.share for lens in lenses])[:, None] * trust / held[:, None]
    weights = voices.sum(axis=0)
    part = np.divide(voices, weights, out=np.zeros_like(voices), where=weights > 0)
    group = len(raw[clients[0]])
    units = np.zeros((len(lenses), len(clients), group))
    for j, lens in enumerate(lenses):
        for k, client in enumerate(clients):
            if client in lens.weights:
                units[j, k] = standardisers[j][client](np.array(raw[client], dtype=float))
    slopes = np.array([[lens.slopes.get(client, 0.0) for client in clients] for lens in lenses])
    calibrated = (part[:, :, None] * (slopes[:, :, None] * units)).sum(axis=0)
    level = np.median(calibrated, axis=1)
    deviations = calibrated - level[:, None]
    mean = weights @ deviations
    return Fused(
        rewards=fusion(Panel(deviations, weights)) + weights @ level,
        clients=clients,
        weights=weights,
        slopes=(part * slopes).sum(axis=0),
        standardised=(part[:, :, None] * units).sum(axis=0),
        calibrated=calibrated,
        entropy=float(gate.entropy(weights)),
        disagreement=float(np.sqrt(weights @ np.square(deviations - mean)).mean()),
    )
