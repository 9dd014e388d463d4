"""Advantages of the responses of a group."""

from __future__ import annotations

from jaxtyping import Float
from mor_core.algorithms import Advantage, GroupStd
from torch import Tensor


def group_std(rewards: Float[Tensor, "*groups size"], floor: float) -> Float[Tensor, "*groups size"]:
    """A_i = (R_i - mean(R)) / max(std(R), floor), over the last dimension (arXiv 2402.03300, section 4.1.2).

    ``std`` is the population's, in the unit of the rewards. The floor is MoR's: without it a group to which all clients
    are indifferent would have its noise scaled up to unit variance.
    """
    centred = mean_only(rewards)
    return centred / rewards.std(dim=-1, correction=0, keepdim=True).clamp_min(floor)


def mean_only(rewards: Float[Tensor, "*groups size"]) -> Float[Tensor, "*groups size"]:
    """A_i = R_i - mean(R), over the last dimension (Dr.GRPO, arXiv 2503.20783): no division by the spread."""
    return rewards - rewards.mean(dim=-1, keepdim=True)


def advantages(rewards: Float[Tensor, "*groups size"], config: Advantage) -> Float[Tensor, "*groups size"]:
    """The configured advantage, without gradient."""
    return group_std(rewards, config.floor) if isinstance(config, GroupStd) else mean_only(rewards)
