"""Optimal policies of the arms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import repeat
from typing import Any

import numpy as np

from quality.arms import Arm
from quality.evidence import ExperimentData, Table
from quality.gold import GOLD, compare
from quality.group_scores import AnchorPairs, GroupScores, Rewards
from quality.optimum import Optimum, optimum, penalty
from quality.questions.ranking import COUNTS

DIVERGENCES = (0.25, 0.5, 1.0, 1.5, 2.0)
"""KL to the base policy at which optima are evaluated, nats per response."""
_COMPARED_AT = 1.0
"""KL at which arms are compared in the tables, nats per response."""

_Optima = dict[float, dict[str, Optimum]]
"""Optima by KL and by the name of the gold value; without those that a reward cannot reach."""


def policies(evidence: ExperimentData) -> Table:
    """Compute the gold value of each arm's optimal policy, at equal KL to the base policy."""
    base = {name: float(gold.mean()) for name, gold in evidence.truth.items()}
    tuned = asdict(evidence.supervised) | {"gain": evidence.supervised.correct - base["correct"]}
    return {
        "prompts": len(evidence.sampled),
        "responses": evidence.sampled.scores.shape[2],
        "base": base,
        "supervised on anchors": tuned,
        "by anchors": {str(count): _compared(evidence, evidence.drawn(count)) for count in COUNTS},
    }


def _compared(evidence: ExperimentData, draws: list[AnchorPairs]) -> Table:
    """Compare all arms, fitted on these draws of anchors."""
    arms = evidence.all_arms()
    cases = [(arm, anchors) for arm in arms for anchors in draws]
    found = list(evidence.each(_led, *zip(*cases, strict=True), repeat(evidence.sampled), repeat(dict(evidence.truth))))
    led = {arm.title: found[k * len(draws) : (k + 1) * len(draws)] for k, arm in enumerate(arms)}
    led[GOLD] = [_optima(evidence.truth["taste"], evidence.truth)]
    level = evidence.truth["correct"].mean(axis=1)
    correct = {
        title: level + np.stack([by_kl[_COMPARED_AT]["correct"].by_prompt for by_kl in by_draw])
        for title, by_draw in led.items()
        if all(_COMPARED_AT in by_kl for by_kl in by_draw)
    }
    return {
        "curves": {title: _curve(by_draw) for title, by_draw in led.items()},
        "at KL 1": compare(correct, evidence.sampled.domains),
    }


def _led(arm: Arm, anchors: AnchorPairs, sampled: GroupScores, truth: Mapping[str, Rewards]) -> _Optima:
    return _optima(arm.fit(anchors)(sampled), truth)


def _optima(rewards: Rewards, truth: Mapping[str, Rewards]) -> _Optima:
    betas = {kl: penalty(rewards, kl) for kl in DIVERGENCES}
    return {
        kl: {name: optimum(rewards, gold, beta) for name, gold in truth.items()}
        for kl, beta in betas.items()
        if beta is not None
    }


def _curve(by_draw: list[_Optima]) -> dict[str, list[Any]]:
    """Average over draws, at each KL that the reward of every draw reaches."""
    reached = [kl for kl in DIVERGENCES if all(kl in by_kl for by_kl in by_draw)]

    def mean(gold: str, of: str) -> list[float]:
        return [float(np.mean([getattr(by_kl[kl][gold], of) for by_kl in by_draw])) for kl in reached]

    return {
        "kl": reached,
        "proxy": mean("taste", "proxy"),
        **{name: mean(name, "gold") for name in next(iter(by_draw[0].values()), {})},
    }
