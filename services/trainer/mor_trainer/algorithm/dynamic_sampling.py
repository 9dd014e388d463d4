"""Which groups teach something."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from mor_core.algorithms import DynamicSampling


def alike(rewards: Sequence[float], tolerance: float) -> bool:
    """Whether the rewards of a group spread (population standard deviation) by no more than ``tolerance``, logits."""
    return statistics.pstdev(rewards) <= tolerance


def teaches(rewards: Sequence[float], config: DynamicSampling | None) -> bool:
    """Whether a group is worth a gradient; without dynamic sampling every group is."""
    return config is None or not alike(rewards, config.tolerance)


def replaceable(config: DynamicSampling | None, groups_per_step: int) -> int:
    """How many groups of a step may be replaced because their rewards are alike (DAPO, arXiv 2503.14476, eq. 11).

    The paper samples until the step is full of groups that teach; the bound keeps a step finite where none do.
    """
    return 0 if config is None else config.most_groups(groups_per_step) - groups_per_step
