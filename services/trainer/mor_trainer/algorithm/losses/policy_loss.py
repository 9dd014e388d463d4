"""Parts of a policy loss: a surrogate for each token, and the weight of each token in the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens


@dataclass(frozen=True)
class Surrogate:
    """Surrogate of each token, to be maximised."""

    value: Float[Tensor, " n"]
    """With gradient."""
    low: Bool[Tensor, " n"]
    """Tokens whose ratio the lower limit clips."""
    high: Bool[Tensor, " n"]
    """Tokens whose ratio the upper limit clips."""


class PolicyLoss(Protocol):
    """Loss of an algorithm, as −J.

    Deviation from the papers, in all losses: ρ = π/π_old is measured from the policy as the step began, not from the
    sampler; the difference to the sampling engine is corrected in ``mor_trainer.algorithm.importance``.

    J = Σ_t weight_t · surrogate_t, over all response tokens of an update.
    """

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return the weight of one token of each response. ``lengths``: tokens of all responses of the update."""
        ...

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute the surrogate of each token of a micro-batch."""
        ...


def clipped(ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip: Clip) -> Surrogate:
    """Compute min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) (PPO, arXiv 1707.06347, eq. 7; separate ε: DAPO, eq. 10)."""
    detached = ratio.detach()
    return Surrogate(
        value=torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage),
        low=(detached < 1 - clip.low) & (advantage < 0),
        high=(detached > 1 + clip.high) & (advantage > 0),
    )


def by_response_mean(lengths: Int[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    """Return 1/(N |o_i|): the mean over the responses of the mean over their tokens."""
    return 1.0 / (lengths.clamp_min(1) * len(lengths)).double()


def by_token_mean(lengths: Int[Tensor, " responses"]) -> Float[Tensor, " responses"]:
    """Return 1/Σ|o_i|: the mean over all tokens."""
    return torch.full((len(lengths),), 1.0 / max(1, int(lengths.sum())), dtype=torch.float64)
