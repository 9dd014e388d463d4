"""What an algorithm consists of: a surrogate for each token, and the share of each token in the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.tokens import Tokens


@dataclass(frozen=True)
class Surrogate:
    """An objective by token, to be maximised."""

    value: Float[Tensor, " n"]
    """With gradient."""
    low: Bool[Tensor, " n"]
    """Where the lower limit of the ratio bites."""
    high: Bool[Tensor, " n"]
    """Where the upper limit of the ratio bites."""


class Objective(Protocol):
    """J = Σ_t share_t · surrogate_t, over all response tokens of an update."""

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """Share of one token of each response. ``lengths``: tokens of all responses of the update."""
        ...

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """The objective of each token of a micro-batch."""
        ...


def clipped(ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip: Clip) -> Surrogate:
    """min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) (PPO, arXiv 1707.06347, eq. 7; separate ε: DAPO, eq. 10)."""
    held = ratio.detach()
    return Surrogate(
        value=torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage),
        low=(held < 1 - clip.low) & (advantage < 0),
        high=(held > 1 + clip.high) & (advantage > 0),
    )


def by_response_mean(lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """1/(N |o_i|): the mean over the responses of the mean over their tokens."""
    return 1.0 / (lengths.clamp_min(1) * len(lengths)).double()


def by_token_mean(lengths: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
    """1/Σ|o_i|: the mean over all tokens."""
    return torch.full((len(lengths),), 1.0 / max(1, int(lengths.sum())), dtype=torch.float64)
