"""Group relative policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.objective import Surrogate, by_response_mean, clipped
from mor_trainer.algorithm.losses.tokens import Tokens


@dataclass(frozen=True)
class GrpoObjective:
    """J = 1/N Σ_i 1/|o_i| Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i), with ρ_it = π/π_old of a token:
    each response counts the same (GRPO, arXiv 2402.03300, eq. 3).
    """

    clip: Clip

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """1/(N |o_i|)."""
        del max_tokens
        return by_response_mean(lengths)

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
