from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from mor_trainer.algorithm.advantage import group_std

from quality.arms import MixtureOfRewards
from quality.arms.competence import Competence
from quality.federated.federation import Federation, Trained
from quality.federated.grpo_training import train_by_reward
from quality.federated.losses import fed_grpo_advantage
from quality.federated.report import REFERENCE
from quality.group_scores import Rewards
from quality.models import AVERAGED
from quality.scoring import Group

FLOOR = 0.1
"""Least standard deviation of a group's rewards in MoR's advantage, the product's default, logits."""


class MixtureReward:
    """MoR: GRPO of the server's policy on the router's mixture of all clients' scores."""

    title = REFERENCE
    local, server = False, True

    def train(self, federation: Federation) -> Trained:
        fitted = MixtureOfRewards().fit(federation.anchors)
        count_all(federation, federation.anchor_groups)

        def reward(groups: Sequence[Group]) -> Rewards:
            count_all(federation, groups)
            return fitted(federation.panel.group_scores(groups))

        return Trained({"": train_by_reward(federation, reward, partial(group_std, floor=FLOOR))})


class AveragedRewardModel:
    """GRPO of the server's policy on the reward model that clients of one architecture trained by FedAvg.

    The server holds that model, so that no group leaves it; the clients sent parameters before.
    """

    title = "GRPO on the averaged reward model"
    local, server = False, True

    def train(self, federation: Federation) -> Trained:
        for _ in federation.averaged_from:
            federation.ledger.sent(to_clients=federation.averaged_bytes, from_clients=federation.averaged_bytes)
        reward = partial(federation.panel.by, AVERAGED)
        return Trained({"": train_by_reward(federation, reward, partial(group_std, floor=FLOOR))})


class FedGrpo:
    """FedGRPO (Zhu et al. 2026, arXiv 2602.12014): the most competent clients score a group, by its own advantage.

    As in the paper: competence on the most similar auxiliary questions, the top M experts of each question, the mean
    of their rewards, and an advantage that is standardised within the group without a floor (as in its authors' code).
    Decided here: the auxiliary questions are the anchors, of which the twelve nearest count; M is 3, as in
    ``quality.arms.competence``; a client is competent on an anchor if it ranks the pair as labelled; similarity is that
    of the router's embeddings; and rewards, verdicts of correctness there, are scores in units of each client's
    differences on the anchors, because scores of different models have no common unit. KL penalty, sampling and
    optimiser are those of all arms here.
    """

    title = "FedGRPO"
    local, server = False, True

    def train(self, federation: Federation) -> Trained:
        competence = Competence(federation.anchors)
        count_all(federation, federation.anchor_groups)

        def reward(groups: Sequence[Group]) -> Rewards:
            # All scores are computed, and only those of the experts are sent and used.
            scored = federation.panel.group_scores(groups)
            experts = competence.experts(scored.inputs)
            for number, client in enumerate(federation.panel.clients):
                _count(federation, client, [groups[row] for row in np.flatnonzero((experts == number).any(axis=1))])
            return competence.rewards(scored, experts)

        return Trained({"": train_by_reward(federation, reward, fed_grpo_advantage)})


def count_all(federation: Federation, groups: Sequence[Group]) -> None:
    """Count the bytes of groups that all clients score."""
    for client in federation.panel.clients:
        _count(federation, client, groups)


def _count(federation: Federation, client: str, groups: Sequence[Group]) -> None:
    to_client, from_client = federation.score_bytes.of(client, groups)
    federation.ledger.sent(to_clients=to_client, from_clients=from_client)
