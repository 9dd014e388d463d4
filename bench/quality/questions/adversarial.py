"""Loss of accuracy by adversarial clients."""

from __future__ import annotations

from dataclasses import asdict
from itertools import repeat

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.arms.mixture import serve
from quality.attacks import SCENARIOS
from quality.evidence import ExperimentData, Table
from quality.group_scores import AnchorPairs, GroupScores, agreement
from quality.ranking import judge, judge_each


def adversarial(evidence: ExperimentData) -> Table:
    """Evaluate MoR with adversaries: further clients that join, and each domain's best client turned adversarial.

    A turned client is also compared with the same population without it: its knowledge is lost in both cases.
    """
    draws = evidence.drawn(draws=max(2, evidence.draws // 4))
    experts = _experts(evidence)
    cases = [(anchors, evidence.held_out, expert, 2 * seed) for expert in experts for seed, anchors in enumerate(draws)]
    arm, found = MixtureOfRewards(), {}
    clean = np.tile(judge(arm, draws, evidence.held_out, evidence.executor), (len(experts), 1))
    absent = judge_each(
        arm,
        [(AnchorPairs(_without(anchors.pairs, expert)), _without(live, expert)) for anchors, live, expert, _ in cases],
        evidence.executor,
    )
    for scenario in SCENARIOS:
        attacked = [scenario.joined(*case) for case in cases]
        joined = list(evidence.each(_joined, *zip(*attacked, strict=True), repeat(len(evidence.clients))))
        turned = judge_each(arm, [scenario.turned(*case) for case in cases], evidence.executor)
        results = {
            "clean": clean,
            "absent": absent,
            "joined": np.stack([right for right, _ in joined]),
            "turned": turned,
        }
        by_clean = evidence.standings(results, "clean")
        found[scenario.title] = {
            "weight": 100 * max(weight for _, weight in joined),
            "joined": asdict(by_clean["joined"].behind),
            "turned": asdict(by_clean["turned"].behind),
            "turned against absent": asdict(evidence.standings(results, "absent")["turned"].behind),
            "worst expert, turned": max(
                100 * float((clean - turned).reshape(len(experts), len(draws), -1)[k].mean())
                for k in range(len(experts))
            ),
        }
    return found


def _joined(anchors: AnchorPairs, live: GroupScores, honest: int) -> tuple[Float[ndarray, " pairs"], float]:
    """Return MoR's correctness on the pairs, and the largest mean weight of an adversary over the anchors."""
    mixture = MixtureOfRewards().mixture(anchors)
    weights = mixture.weights(anchors.pairs.inputs, mixture.clients)[:, honest:]
    return agreement(serve(mixture, live)), float(weights.mean(axis=0).max())


def _experts(evidence: ExperimentData) -> list[int]:
    right, domains = agreement(evidence.held_out.scores), np.array(evidence.held_out.domains)
    return [int(right[domains == domain].mean(axis=0).argmax()) for domain in evidence.domains]


def _without(groups: GroupScores, client: int) -> GroupScores:
    return groups.with_scores(np.delete(groups.scores, client, axis=1))
