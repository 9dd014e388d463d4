"""Advantages of the responses of a group."""

from __future__ import annotations

from jaxtyping import Float
from mor_core.algorithms import Advantage, BatchStd, GroupStd, MeanOnly
from torch import Tensor


def group_std(rewards: Float[Tensor, "*groups size"], floor: float) -> Float[Tensor, "*groups size"]:
    """Standardise rewards within their group, over the last dimension (GRPO, arXiv 2402.03300, section 4.1.2).

    Deviation: the floor. Without it a group to which all clients are indifferent would have its noise scaled up to unit
    variance.

    A_i = (R_i - mean(R)) / max(std(R), floor), with the population's ``std``, in the unit of the rewards.
    """
    centred = mean_only(rewards)
    return centred / rewards.std(dim=-1, correction=0, keepdim=True).clamp_min(floor)


def mean_only(rewards: Float[Tensor, "*groups size"]) -> Float[Tensor, "*groups size"]:
    """Centre rewards within their group, over the last dimension, without division (Dr. GRPO, arXiv 2503.20783).

    A_i = R_i - mean(R).
    """
    return rewards - rewards.mean(dim=-1, keepdim=True)


def batch_std(rewards: Float[Tensor, "groups size"], floor: float) -> Float[Tensor, "groups size"]:
    """Centre rewards within their group and standardise over the step (REINFORCE++, arXiv 2501.03262, section 3).

    Deviation: the floor. Groups keep their relative weight: one with similar rewards is not scaled up. The centred
    rewards have mean 0 over all responses, so their root mean square is their ``std``.

    A_i = (R_i - mean of its group) / max(std over all responses, floor): the paper's variant with group baseline.
    """
    centred = mean_only(rewards)
    return centred / centred.square().mean().sqrt().clamp_min(floor)


def advantages(rewards: Float[Tensor, "groups size"], config: Advantage) -> Float[Tensor, "groups size"]:
    """Compute the configured advantage of all responses of a step, without gradient."""
    match config:
        case GroupStd():
            return group_std(rewards, config.floor)
        case MeanOnly():
            return mean_only(rewards)
        case BatchStd():
            return batch_std(rewards, config.floor)
