"""Synthetic scores with known truth: specialists for one kind of input each, and random clients."""

from __future__ import annotations

import numpy as np
from quality.group_scores import AnchorPairs, GroupScores

SKILLS = ("a/one", "a/two", "b/one", "b/two")


def groups(count: int, seed: int, size: int = 2, misled: float = -0.5) -> GroupScores:
    """Make scores: client k knows skill k and is wrong elsewhere by ``misled``; the last two are random.

    The first response of a group is the best by one logit, the second the next, and so on.
    """
    random = np.random.default_rng(seed)
    skill = np.arange(count) % len(SKILLS)
    inputs = np.eye(len(SKILLS))[skill] + 0.05 * random.normal(size=(count, len(SKILLS)))
    truth = 1.0 - np.arange(size, dtype=float)
    known = np.where(np.arange(len(SKILLS)) == skill[:, None], 2.0, misled)
    scores = known[:, :, None] * truth + 0.7 * random.normal(size=(count, len(SKILLS), size))
    coins = random.normal(size=(count, 2, size))
    return GroupScores(inputs, np.concatenate([scores, coins], axis=1), tuple(SKILLS[k] for k in skill))


def anchors(count: int = 64, seed: int = 0) -> AnchorPairs:
    return AnchorPairs(groups(count, seed))
