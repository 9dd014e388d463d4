"""Loss of clipped importance sampling weight policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from mor_core.algorithms import WeightClip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.losses.policy_loss import Surrogate, by_token_mean


@dataclass(frozen=True)
class CispoLoss:
    """CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5): the weight is clipped, so that no token loses its gradient.

    Deviation: the mean is over the tokens of all responses of the update, not of each group. The paper does not give
    ε_high; the default is MoR's.

    J = 1/Σ_i|o_i| Σ_i Σ_t sg(clip(ρ_it, 1 − ε_low, 1 + ε_high)) A_i log π_it, where sg stops the gradient.
    """

    clip: WeightClip

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return 1/Σ|o_i|."""
        del max_tokens
        return by_token_mean(lengths)

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute sg(clip(ρ)) A log π."""
        ratio = tokens.log_ratio.detach().exp()
        low, high = 1 - self.clip.low, 1 + self.clip.high
        return Surrogate(
            value=ratio.clamp(low, high) * tokens.advantage * tokens.policy,
            low=ratio < low,
            high=ratio > high,
        )
