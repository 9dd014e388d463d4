"""Clipped importance sampling weight policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import WeightClip
from torch import Tensor

from mor_trainer.algorithm.losses.objective import Surrogate, by_token_mean
from mor_trainer.algorithm.losses.tokens import Tokens


@dataclass(frozen=True)
class CispoObjective:
    """J = 1/Σ_i|o_i| Σ_i Σ_t sg(clip(ρ_it, 1 − ε_low, 1 + ε_high)) A_i log π_it: the weight is clipped and carries no
    gradient, so that no token loses its own (CISPO, MiniMax-M1, arXiv 2506.13585, eq. 4 and 5).
    """

    clip: WeightClip

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """1/Σ|o_i|."""
        del max_tokens
        return by_token_mean(lengths)

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """sg(clip(ρ)) A log π."""
        ratio = tokens.log_ratio.detach().exp()
        low, high = 1 - self.clip.low, 1 + self.clip.high
        return Surrogate(
            value=ratio.clamp(low, high) * tokens.advantage * tokens.policy,
            low=ratio < low,
            high=ratio > high,
        )
