"""What every fusion strategy sees of one group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from numpy import ndarray


@dataclass(frozen=True)
class Panel:
    """The clients that answered the whole group. Deviations only: no strategy can depend on a client's level."""

    calibrated: Float[ndarray, "clients group"]
    """Calibrated scores less the client's median over the group, logits."""
    weights: Float[ndarray, " clients"]
    """Mixture weights, summing to 1."""


class Fusion(Protocol):
    """One number per response, in logits, from a panel. Moving all of a client's scores changes nothing."""

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]: ...
