"""Replacement of groups that have no training signal because their rewards are equal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mor_core.algorithms import DynamicSampling


def zero_variance(rewards: Sequence[float], tolerance: float) -> bool:
    """Return whether the population standard deviation of a group's rewards is at most ``tolerance``, logits."""
    return statistics.pstdev(rewards) <= tolerance


def has_signal(rewards: Sequence[float], config: DynamicSampling | None) -> bool:
    """Return whether a group has a training signal; without dynamic sampling every group counts as having one."""
    return config is None or not zero_variance(rewards, config.tolerance)


def max_replacements(config: DynamicSampling | None, groups_per_step: int) -> int:
    """Return how many groups without signal a step may replace (DAPO, arXiv 2503.14476, eq. 11).

    Deviation: the paper samples until the step is full of groups with a signal; the limit keeps a step finite where no
    group has one.
    """
    return 0 if config is None else config.most_groups(groups_per_step) - groups_per_step
