"""Clients that lie, replayed on scores: what each scenario does to the scores of anchors and of live groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.scored import Anchors, Groups

Scores = Float[ndarray, "groups size"]
Lie = Callable[[Scores, np.random.Generator], Scores]


@dataclass(frozen=True)
class Scenario:
    """``liars`` clients say ``lie`` in place of what they think; a sleeper starts after the anchors."""

    title: str
    lie: Lie
    liars: int = 1
    sleeper: bool = False

    def joined(self, anchors: Anchors, live: Groups, model: int, seed: int) -> tuple[Anchors, Groups]:
        """The population with the liars as further clients. Each of them knows what client ``model`` knows."""
        told = self._said(anchors.pairs, model, seed, lying=not self.sleeper)
        said = self._said(live, model, seed + 1, lying=True)
        return Anchors(_with(anchors.pairs, told, self.liars)), _with(live, said, self.liars)

    def turned(self, anchors: Anchors, live: Groups, client: int, seed: int) -> tuple[Anchors, Groups]:
        """The population in which ``client`` itself lies."""
        told = self._said(anchors.pairs, client, seed, lying=not self.sleeper)
        said = self._said(live, client, seed + 1, lying=True)
        return Anchors(_instead(anchors.pairs, client, told)), _instead(live, client, said)

    def _said(self, groups: Groups, client: int, seed: int, *, lying: bool) -> Scores:
        scores = groups.scores[:, client]
        return self.lie(scores, np.random.default_rng(seed)) if lying else scores


def _with(groups: Groups, said: Scores, liars: int) -> Groups:
    return groups.said(np.concatenate([groups.scores, *[said[:, None]] * liars], axis=1))


def _instead(groups: Groups, client: int, said: Scores) -> Groups:
    scores = groups.scores.copy()
    scores[:, client] = said
    return groups.said(scores)


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
