"""Loss of group sequence policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens, by_response
from mor_trainer.algorithm.losses.policy_loss import Surrogate, by_response_mean, clipped


@dataclass(frozen=True)
class GspoLoss:
    """GSPO (arXiv 2507.18071, eq. 5 and 7): the unit that is rewarded, the response, is the unit that is clipped.

    Deviation: none; each token carries its response's term, and the token weights make it count once.

    J = 1/N Σ_i min(s_i A_i, clip(s_i, 1 − ε_low, 1 + ε_high) A_i), with s_i = (π(o_i)/π_old(o_i))^(1/|o_i|).
    """

    clip: Clip

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return 1/(N |o_i|): a response's term, which all of its tokens carry, counts once."""
        del max_tokens
        return by_response_mean(lengths)

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute min(s A, clip(s) A) of each token's response."""
        lengths = by_response(torch.ones_like(tokens.old), tokens.response)
        ratio = (by_response(tokens.log_ratio, tokens.response) / lengths).exp()
        return clipped(ratio, tokens.advantage, self.clip)
