"""Decoupled clip and dynamic sampling policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.objective import Surrogate, by_token_mean, clipped
from mor_trainer.algorithm.losses.tokens import Tokens


@dataclass(frozen=True)
class DapoObjective:
    """J = 1/Σ_i|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i) with ε_high > ε_low: each token of
    the update counts the same, and rare tokens may gain more than others lose (DAPO, arXiv 2503.14476, eq. 8).

    The paper's dynamic sampling chooses the groups: ``mor_trainer.algorithm.dynamic_sampling``.
    """

    clip: Clip

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """1/Σ|o_i|."""
        del max_tokens
        return by_token_mean(lengths)

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
