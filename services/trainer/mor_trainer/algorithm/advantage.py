"""Advantages of the responses of a group."""

from __future__ import annotations

from jaxtyping import Float
from mor_core.algorithms import Advantage, BatchStd, GroupStd, MeanOnly
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


def batch_std(rewards: Float[Tensor, "groups size"], floor: float) -> Float[Tensor, "groups size"]:
    """A_i = (R_i - mean of its group) / max(std over all responses, floor) (REINFORCE++ with group baseline, arXiv
    2501.03262, section 3): groups keep their relative weight, one that agrees more than others is not scaled up.

    The centred rewards have mean 0 over all responses, so their root mean square is their ``std``.
    """
    centred = mean_only(rewards)
    return centred / centred.square().mean().sqrt().clamp_min(floor)


def advantages(rewards: Float[Tensor, "groups size"], config: Advantage) -> Float[Tensor, "groups size"]:
    """The configured advantage of all responses of a step, without gradient."""
    match config:
        case GroupStd():
            return group_std(rewards, config.floor)
        case MeanOnly():
            return mean_only(rewards)
        case BatchStd():
            return batch_std(rewards, config.floor)
