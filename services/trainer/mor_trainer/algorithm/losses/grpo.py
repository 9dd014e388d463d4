"""Loss of group relative policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.losses.policy_loss import Surrogate, by_response_mean, clipped


@dataclass(frozen=True)
class GrpoLoss:
    """GRPO (arXiv 2402.03300, eq. 3): each response counts the same.

    Deviation: two limits instead of one ε; the KL penalty is a separate part, ``mor_trainer.algorithm.kl``.

    J = 1/N Σ_i 1/|o_i| Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i), with ρ_it = π/π_old of a token.
    """

    clip: Clip

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return 1/(N |o_i|)."""
        del max_tokens
        return by_response_mean(lengths)

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
