"""Where the arms would lead a policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from itertools import repeat
from typing import Any

import numpy as np

from quality.arms import Arm
from quality.evidence import Evidence, Table
from quality.gold import GOLD, compare
from quality.optimum import Optimum, optimum, penalty
from quality.questions.ranking import COUNTS
from quality.scored import Anchors, Groups, Rewards

DIVERGENCES = (0.25, 0.5, 1.0, 1.5, 2.0)
_COMPARED_AT = 1.0

_Optima = dict[float, dict[str, Optimum]]
"""By KL, and by the name of the gold value; without what a reward cannot reach."""


def policies(evidence: Evidence) -> Table:
    """What the policy that is optimal for an arm's reward is worth, at equal KL to the base policy."""
    base = {name: float(gold.mean()) for name, gold in evidence.truth.items()}
    tuned = asdict(evidence.supervised) | {"gain": evidence.supervised.correct - base["correct"]}
    return {
        "prompts": len(evidence.sampled),
        "responses": evidence.sampled.scores.shape[2],
        "base": base,
        "supervised on anchors": tuned,
        "by anchors": {str(count): _compared(evidence, evidence.drawn(count)) for count in COUNTS},
    }


def _compared(evidence: Evidence, draws: list[Anchors]) -> Table:
    """All arms fitted on these draws of anchors."""
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


def _led(arm: Arm, anchors: Anchors, sampled: Groups, truth: Mapping[str, Rewards]) -> _Optima:
    return _optima(arm.fit(anchors)(sampled), truth)


def _optima(rewards: Rewards, truth: Mapping[str, Rewards]) -> _Optima:
    betas = {kl: penalty(rewards, kl) for kl in DIVERGENCES}
    return {
        kl: {name: optimum(rewards, gold, beta) for name, gold in truth.items()}
        for kl, beta in betas.items()
        if beta is not None
    }


def _curve(by_draw: list[_Optima]) -> dict[str, list[Any]]:
    """Means over draws, at each KL that the reward of every draw reaches."""
    reached = [kl for kl in DIVERGENCES if all(kl in by_kl for by_kl in by_draw)]

    def mean(gold: str, of: str) -> list[float]:
        return [float(np.mean([getattr(by_kl[kl][gold], of) for by_kl in by_draw])) for kl in reached]

    return {
        "kl": reached,
        "proxy": mean("taste", "proxy"),
        **{name: mean(name, "gold") for name in next(iter(by_draw[0].values()), {})},
    }
