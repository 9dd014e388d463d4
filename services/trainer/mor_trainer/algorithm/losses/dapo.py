"""Loss of decoupled clip and dynamic sampling policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.losses.policy_loss import Surrogate, by_token_mean, clipped


@dataclass(frozen=True)
class DapoLoss:
    """DAPO (arXiv 2503.14476, eq. 8): each token counts the same, and rare tokens may gain more than others lose.

    Deviation: the mean is over the tokens of all responses of the update, not of each group. The paper's dynamic
    sampling chooses the groups, in ``mor_trainer.algorithm.dynamic_sampling``.

    J = 1/Σ_i|o_i| Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i), with ε_high > ε_low.
    """

    clip: Clip

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return 1/Σ|o_i|."""
        del max_tokens
        return by_token_mean(lengths)

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
