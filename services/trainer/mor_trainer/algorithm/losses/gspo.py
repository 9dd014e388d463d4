"""Group sequence policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.objective import Surrogate, by_response_mean, clipped
from mor_trainer.algorithm.losses.tokens import Tokens, by_response


@dataclass(frozen=True)
class GspoObjective:
    """J = 1/N Σ_i min(s_i A_i, clip(s_i, 1 − ε_low, 1 + ε_high) A_i) with s_i = (π(o_i)/π_old(o_i))^(1/|o_i|): the unit
    that is rewarded, the response, is the unit that is clipped (GSPO, arXiv 2507.18071, eq. 5 and 7).
    """

    clip: Clip

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """1/(N |o_i|): a response's objective, which all of its tokens carry, counts once."""
        del max_tokens
        return by_response_mean(lengths)

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """min(s A, clip(s) A) of the token's response."""
        lengths = by_response(torch.ones_like(tokens.old), tokens.response)
        ratio = (by_response(tokens.log_ratio, tokens.response) / lengths).exp()
        return clipped(ratio, tokens.advantage, self.clip)
