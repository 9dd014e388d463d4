"""Input and protocol of the fusion strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from numpy import ndarray


@dataclass(frozen=True)
class GroupDeviations:
    """Deviations of the clients that scored the whole group. No strategy can depend on a client's level."""

    calibrated: Float[ndarray, "clients group"]
    """Calibrated scores less the client's median over the group, logits."""
    weights: Float[ndarray, " clients"]
    """Mixture weights, summing to 1."""


class FusionStrategy(Protocol):
    """Function from deviations to one reward per response, in logits."""

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]: ...
