"""Correction between the engine that sampled the tokens and the trainer that learns from them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from mor_core.algorithms import Importance
from torch import Tensor


def correction(ratio: Float[Tensor, "*n"], config: Importance) -> Float[Tensor, "*n"]:
    """Factor c on each token's term, given the raw ratio r = π_trainer / π_engine; no gradient flows through it.

    ``truncate``: c = min(r, C)/r, so that the ratio counts as min(r, C) (truncated importance sampling, Ionides 2008).
    ``mask``: c = 1 where 1/C ≤ r ≤ C and 0 elsewhere: such a token says more about numerics than about the policy.
    """
    raw = ratio.detach()
    match config.kind:
        case "truncate":
            return raw.clamp_max(config.cap) / raw
        case "mask":
            return ((raw >= 1 / config.cap) & (raw <= config.cap)).to(raw.dtype)
        case "none":
            return raw.new_ones(raw.shape)


@dataclass(frozen=True)
class RatioStatistics:
    """Raw importance ratios of a set of tokens; sums, so that parts can be added up."""

    count: float
    total: float
    total_of_squares: float
    largest: float

    @classmethod
    def of(cls, ratio: Float[Tensor, " n"]) -> RatioStatistics:
        raw = ratio.detach().double()
        if raw.numel() == 0:
            return cls(0.0, 0.0, 0.0, 0.0)
        return cls(float(raw.numel()), raw.sum().item(), raw.square().sum().item(), raw.max().item())

    def __add__(self, other: RatioStatistics) -> RatioStatistics:
        return RatioStatistics(
            self.count + other.count,
            self.total + other.total,
            self.total_of_squares + other.total_of_squares,
            max(self.largest, other.largest),
        )

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    @property
    def effective_sample_share(self) -> float | None:
        """(Σ r)² / (n Σ r²), Kish's effective sample size over n: 1 when sampler and trainer agree."""
        return self.total**2 / (self.count * self.total_of_squares) if self.total_of_squares else None
