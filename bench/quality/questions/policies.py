"""Where the arms would lead a policy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.evidence import Evidence, Table
from quality.gold import GOLD, compare
from quality.optimum import at_divergence
from quality.scored import Rewards

DIVERGENCES = (0.25, 0.5, 1.0, 1.5, 2.0)


def policies(evidence: Evidence) -> Table:
    """What the policy that is optimal for an arm's reward is worth, at equal KL to the base policy."""
    draws = evidence.drawn(draws=max(2, evidence.draws // 4))
    curves: dict[str, dict[str, list[Any]]] = {}
    correct: dict[str, Float[ndarray, "draws prompts"]] = {}
    level = evidence.truth["correct"].mean(axis=1)
    scorers: dict[str, Callable[[], list[Rewards]]] = {
        arm.title: lambda arm=arm: [arm.fit(anchors)(evidence.sampled) for anchors in draws]  # type: ignore[misc]
        for arm in evidence.all_arms()
    }
    scorers[GOLD] = lambda: [evidence.truth["taste"]]
    for title, rewards in scorers.items():
        made = rewards()
        curves[title] = {name: [] for name in ("kl", "proxy", *evidence.truth)}
        for kl in DIVERGENCES:
            best = {name: [at_divergence(one, gold, kl) for one in made] for name, gold in evidence.truth.items()}
            reached = {name: [one for one in found if one is not None] for name, found in best.items()}
            if not all(reached.values()):
                continue
            curves[title]["kl"].append(kl)
            curves[title]["proxy"].append(float(np.mean([one.proxy for one in reached["taste"]])))
            for name, found in reached.items():
                curves[title][name].append(float(np.mean([one.gold for one in found])))
            if kl == 1.0:
                correct[title] = level + np.stack([one.by_prompt for one in reached["correct"]])
    base = {name: float(gold.mean()) for name, gold in evidence.truth.items()}
    tuned = asdict(evidence.supervised) | {"gain": evidence.supervised.correct - base["correct"]}
    return {
        "prompts": len(evidence.sampled),
        "responses": evidence.sampled.scores.shape[2],
        "base": base,
        "supervised on anchors": tuned,
        "curves": curves,
        "at KL 1": compare(correct, evidence.sampled.domains),
    }
