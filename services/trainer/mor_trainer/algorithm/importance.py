"""Correction for the difference between the sampling engine and the trainer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from mor_core.algorithms import Importance
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import by_response


@dataclass(frozen=True)
class Correction:
    """Factor of each token's term, without gradient."""

    weight: Float[Tensor, " n"]
    limited: Bool[Tensor, " n"]
    """Tokens whose weight is not the ratio itself."""


def correction(log_ratio: Float[Tensor, " n"], response: Int[Tensor, " n"], config: Importance) -> Correction:
    """Compute the correction c = f(r), where r = π_old/π_engine of the token, or r = Π_t r_t of its response.

    Deviation: one cap C gives both limits of ``mask``, 1/C and C.

    ``truncate``: c = min(r, C), truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly
    brings you off-policy RL training").

    ``mask``: c = r where 1/C ≤ r ≤ C and 0 elsewhere, masked importance sampling (Ling team 2025, "IcePop", for tokens;
    Liu et al. 2025, "When speed kills stability", for sequences). A token or response outside the limits shows a
    difference in numerics rather than in policy.
    """
    log_ratio = log_ratio.detach()
    if config.kind == "none":
        return Correction(torch.ones_like(log_ratio), torch.zeros_like(log_ratio, dtype=torch.bool))
    ratio = (by_response(log_ratio, response) if config.level == "sequence" else log_ratio).exp()
    above = ratio > config.cap
    if config.kind == "truncate":
        return Correction(ratio.clamp_max(config.cap), above)
    outside = above | (ratio < 1 / config.cap)
    return Correction(ratio.masked_fill(outside, 0.0), outside)


@dataclass(frozen=True)
class RatioStatistics:
    """Sums over the raw importance ratios of a set of tokens, so that parts can be added up."""

    count: float = 0.0
    total: float = 0.0
    total_of_squares: float = 0.0
    largest: float = 0.0

    @classmethod
    def of(cls, ratio: Float[Tensor, " n"]) -> RatioStatistics:
        raw = ratio.detach().double()
        if raw.numel() == 0:
            return cls()
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
