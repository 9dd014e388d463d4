"""One group: from the answers that came to a reward, or to the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router import gate
from mor_router.fusion import Fusion, Panel
from mor_router.standardise import Standardiser


@dataclass(frozen=True)
class Fused:
    rewards: Float[ndarray, " group"]
    """Logits. Differences within the group carry the preference; the level is the mixture of the clients' levels."""
    clients: tuple[str, ...]
    """Those that answered all of the group, in the order of the arrays below."""
    weights: Float[ndarray, " clients"]
    """Renormalised over them."""
    standardised: Float[ndarray, "clients group"]
    calibrated: Float[ndarray, "clients group"]
    entropy: float
    """Of the weights, nats."""
    disagreement: float
    """Weighted standard deviation over clients of a response's calibrated deviation, mean over responses, logits."""


@dataclass(frozen=True)
class NoQuorum:
    """The clients that answered held too little of the group's gate weight: losing the expert must not hand the group
    to the ignorant."""

    held: float


def fuse(
    raw: Mapping[str, Sequence[float]],
    *,
    gate_weights: Mapping[str, float],
    slopes: Mapping[str, float],
    standardisers: Mapping[str, Standardiser],
    fusion: Fusion,
    quorum: float,
) -> Fused | NoQuorum:
    """``raw`` holds the clients that answered every response of the group; a client that failed for one is not in it.

    ``gate_weights`` are over all voters and sum to 1.
    """
    clients = tuple(client for client in gate_weights if client in raw)
    trust = np.array([gate_weights[client] for client in clients])
    held = float(trust.sum())
    if held <= 0 or held < quorum - 1e-9:
        return NoQuorum(held)
    weights = trust / held
    standardised = np.stack([standardisers[client](np.array(raw[client], dtype=float)) for client in clients])
    calibrated = np.array([slopes[client] for client in clients])[:, None] * standardised
    level = np.median(calibrated, axis=1)
    deviations = calibrated - level[:, None]
    mean = weights @ deviations
    return Fused(
        rewards=fusion(Panel(deviations, weights)) + weights @ level,
        clients=clients,
        weights=weights,
        standardised=standardised,
        calibrated=calibrated,
        entropy=float(gate.entropy(weights)),
        disagreement=float(np.sqrt(weights @ np.square(deviations - mean)).mean()),
    )
