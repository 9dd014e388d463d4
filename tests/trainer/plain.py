"""The algorithms as in their papers: loops over responses and tokens, without any code of the trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from mor_core.algorithms import Advantage, Algorithm, Cispo, Importance, Kl, Loss
from torch import Tensor


def plain_advantages(rewards: Sequence[Sequence[float]], config: Advantage) -> list[list[float]]:
    centred = [[reward - sum(group) / len(group) for reward in group] for group in rewards]
    if config.kind == "mean_only":
        return centred
    everyone = [value for group in centred for value in group]
    return [
        [value / max(math.sqrt(sum(v * v for v in over) / len(over)), config.floor) for value in group]
        for group in centred
        for over in (group if config.kind == "group_std" else everyone,)
    ]


def plain_correction(log_ratio: float, config: Importance) -> float:
    """Correction of one token. ``log_ratio``: of the token or of its response, by ``config.level``."""
    ratio = math.exp(log_ratio)
    if config.kind == "none":
        return 1.0
    if config.kind == "truncate":
        return min(ratio, config.cap)
    return ratio if 1 / config.cap <= ratio <= config.cap else 0.0


def plain_penalty(policy: Tensor, reference: float, ratio: Tensor, config: Kl) -> Tensor:
    """Penalty of one token."""
    difference = policy - reference
    if config.estimator == "k1":
        return ratio * difference
    if config.estimator == "k2":
        return (ratio.item() if config.corrected else 1.0) * difference**2 / 2
    k3 = torch.exp(-difference) + difference - 1
    return ratio * k3 if config.corrected else k3


def pessimistic(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """PPO's surrogate by cases."""
    if advantage > 0 and ratio.item() > 1 + high:
        return torch.tensor((1 + high) * advantage, dtype=torch.float64)
    if advantage < 0 and ratio.item() < 1 - low:
        return torch.tensor((1 - low) * advantage, dtype=torch.float64)
    return ratio * advantage


def plain_weight(config: Loss, lengths: Sequence[int], row: int, max_tokens: int) -> float:
    """Weight of one token of response ``row`` in the update."""
    if config.kind in ("grpo", "gspo"):
        return 1 / (len(lengths) * lengths[row])
    return 1 / (len(lengths) * max_tokens) if config.kind == "dr_grpo" else 1 / sum(lengths)


def plain_loss(
    policy: Tensor,
    old: Sequence[float],
    engine: Sequence[float],
    reference: Sequence[float],
    rewards: Sequence[Sequence[float]],
    lengths: Sequence[int],
    config: Algorithm,
    max_tokens: int,
) -> Tensor:
    """Loss of an update over all its responses; the log-probabilities are flat, response after response."""
    advantages = [value for group in plain_advantages(rewards, config.advantage) for value in group]
    total = torch.zeros((), dtype=torch.float64)
    start = 0
    for row, (advantage, length) in enumerate(zip(advantages, lengths, strict=True)):
        places = range(start, start + length)
        start += length
        weight = plain_weight(config.loss, lengths, row, max_tokens)
        clip = config.loss.clip
        mismatch = sum(old[t] - engine[t] for t in places)
        likelihood = torch.zeros((), dtype=torch.float64)
        for t in places:
            likelihood = likelihood + (policy[t] - old[t]) / length
        for t in places:
            factor = plain_correction(
                mismatch if config.importance.level == "sequence" else old[t] - engine[t], config.importance
            )
            ratio = torch.exp(policy[t] - old[t])
            if isinstance(config.loss, Cispo):
                term = min(max(ratio.item(), 1 - clip.low), 1 + clip.high) * advantage * policy[t]
            else:
                term = pessimistic(
                    torch.exp(likelihood) if config.loss.kind == "gspo" else ratio, advantage, clip.low, clip.high
                )
            penalty = plain_penalty(policy[t], reference[t], factor * ratio, config.kl)
            total = total - weight * (factor * term - config.kl.beta * penalty)
    return total
