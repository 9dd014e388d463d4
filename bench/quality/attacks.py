"""Adversarial clients, replayed on scores: effect of each scenario on the scores of anchors and live groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.group_scores import AnchorPairs, GroupScores

Scores = Float[ndarray, "groups size"]
Attack = Callable[[Scores, np.random.Generator], Scores]


@dataclass(frozen=True)
class Scenario:
    """``adversaries`` clients that send ``attack`` of their honest scores; a sleeper starts after the anchors."""

    title: str
    attack: Attack
    adversaries: int = 1
    sleeper: bool = False

    def joined(self, anchors: AnchorPairs, live: GroupScores, model: int, seed: int) -> tuple[AnchorPairs, GroupScores]:
        """Add the adversaries as further clients. Each of them knows what client ``model`` knows."""
        on_anchors = self._scores(anchors.pairs, model, seed, attacking=not self.sleeper)
        on_live = self._scores(live, model, seed + 1, attacking=True)
        return AnchorPairs(_with(anchors.pairs, on_anchors, self.adversaries)), _with(live, on_live, self.adversaries)

    def turned(
        self, anchors: AnchorPairs, live: GroupScores, client: int, seed: int
    ) -> tuple[AnchorPairs, GroupScores]:
        """Make ``client`` itself adversarial."""
        on_anchors = self._scores(anchors.pairs, client, seed, attacking=not self.sleeper)
        on_live = self._scores(live, client, seed + 1, attacking=True)
        return AnchorPairs(_instead(anchors.pairs, client, on_anchors)), _instead(live, client, on_live)

    def _scores(self, groups: GroupScores, client: int, seed: int, *, attacking: bool) -> Scores:
        scores = groups.scores[:, client]
        return self.attack(scores, np.random.default_rng(seed)) if attacking else scores


def _with(groups: GroupScores, scores: Scores, adversaries: int) -> GroupScores:
    return groups.with_scores(np.concatenate([groups.scores, *[scores[:, None]] * adversaries], axis=1))


def _instead(groups: GroupScores, client: int, scores: Scores) -> GroupScores:
    changed = groups.scores.copy()
    changed[:, client] = scores
    return groups.with_scores(changed)


def _noise(scores: Scores, random: np.random.Generator) -> Scores:
    return random.normal(0.0, 3.0, scores.shape)


SCENARIOS = (
    Scenario("inflates its scores 1000 times over", lambda scores, _: 1000 * scores),
    Scenario("shifts its scores by 10,000", lambda scores, _: scores + 10_000),
    Scenario("flips its scores", lambda scores, _: -scores),
    Scenario("flips and inflates 1000 times over", lambda scores, _: -1000 * scores),
    Scenario("constant", lambda scores, _: np.zeros_like(scores)),
    Scenario("random", _noise),
    Scenario(
        "colluding pair, the same random scores 1000 times over",
        lambda scores, random: 1000 * _noise(scores, random),
        2,
    ),
    Scenario("colluding pair, flipped", lambda scores, _: -scores, 2),
    Scenario("honest on anchors, flips live", lambda scores, _: -scores, sleeper=True),
)
