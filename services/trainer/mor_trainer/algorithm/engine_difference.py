"""Difference between the log-probabilities of the engine and those of the trainer, on the same tokens and weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class EngineDifference:
    """Sum of the absolute differences over a set of tokens, so that parts can be added up."""

    tokens: int = 0
    total: float = 0.0
    """Nats."""

    @classmethod
    def of(cls, policy: Float[Tensor, " n"], engine: Float[Tensor, " n"], top_p: float) -> EngineDifference:
        """Compare log-probabilities of the trainer's ``policy`` with those of the ``engine``.

        An engine that samples from a nucleus of mass m, ``top_p`` ≤ m ≤ 1, has log π - log μ = log m. What the nucleus
        explains is no difference.
        """
        log_ratio = (policy.detach() - engine).double()
        unexplained = log_ratio - log_ratio.clamp(min=math.log(top_p), max=0.0)
        return cls(log_ratio.numel(), unexplained.abs().sum().item())

    def __add__(self, other: EngineDifference) -> EngineDifference:
        return EngineDifference(self.tokens + other.tokens, self.total + other.total)

    @property
    def mean(self) -> float | None:
        """Mean absolute difference, nats a token."""
        return self.total / self.tokens if self.tokens else None
