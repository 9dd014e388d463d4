"""MoR whose anchors follow the policy, as audits and refits have them in a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from jaxtyping import Int
from mor_trainer.algorithm.advantage import group_std
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.federated.arms.rewarded import FLOOR, count_all
from quality.federated.federation import Federation, Trained
from quality.federated.grpo_training import GROUP_SIZE, train_by_reward
from quality.group_scores import AnchorPairs, GroupScores, Rewards
from quality.scoring import Group

_REFIT = 8
"""New anchors after which the mixture is fitted again."""


class FollowingMixture:
    """MoR with half of its anchors from before the run, and the others from the policy's own samples.

    Two responses to a question, a true one and a false one, are labelled at an even pace during the run. Labels and
    compute are as many as MoR's.
    """

    title = "MoR, half of its anchors from its own samples"
    local, server = False, True

    def train(self, federation: Federation) -> Trained:
        reward = FollowingReward(federation)
        return Trained({"": train_by_reward(federation, reward, partial(group_std, floor=FLOOR))})


class FollowingReward:
    """Mixture that is fitted again as labels arrive."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        given = federation.anchors.pairs
        rows = range(0, len(given), 2)
        count_all(federation, [federation.anchor_groups[row] for row in rows])
        self._labels = len(given) - len(rows)
        self._anchors = replace(given.take(np.array(rows)), others={}, answers=None)
        self._new: list[GroupScores] = []
        self.labelled = 0
        """Anchors from the policy's own samples."""
        self._seen = 0
        self._groups = federation.budget.of_server(len(federation.pairs)) // GROUP_SIZE
        self._dice = np.random.default_rng(federation.seed)
        self._fitted = MixtureOfRewards().fit(AnchorPairs(self._anchors))

    def __call__(self, groups: Sequence[Group]) -> Rewards:
        count_all(self._federation, groups)
        scored = self._federation.panel.group_scores(groups)
        rewards = self._fitted(scored)
        self._seen += len(groups)
        self._label(groups, scored)
        if len(self._new) >= _REFIT:
            self._anchors = _joined([self._anchors, *self._new])
            self._new = []
            self._fitted = MixtureOfRewards().fit(AnchorPairs(self._anchors))
        return rewards

    def _label(self, groups: Sequence[Group], scored: GroupScores) -> None:
        """Label one pair of a group until the labels keep pace with the groups that were sampled."""
        for row in self._dice.permutation(len(groups)):
            if self.labelled >= self._labels * min(self._seen / self._groups, 1.0):
                return
            pair = self._pair(groups[row])
            if pair is not None:
                one = scored.take(np.array([row]))
                self._new.append(one.with_scores(one.scores[:, :, pair]))
                self.labelled += 1

    def _pair(self, group: Group) -> Int[ndarray, " pair"] | None:
        """Draw a true and a false response of a group, if it has both."""
        true = np.array([self._federation.label(group.prompt.id, example.response) for example in group.examples])
        if true.all() or not true.any():
            return None
        return np.array([self._dice.choice(np.flatnonzero(of)) for of in (true, ~true)])


def _joined(parts: Sequence[GroupScores]) -> GroupScores:
    return GroupScores(
        np.concatenate([part.inputs for part in parts]),
        np.concatenate([part.scores for part in parts]),
        skills=sum((part.skills for part in parts), ()),
    )
