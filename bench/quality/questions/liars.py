"""What clients cost that lie."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from quality.arms import MixtureOfRewards
from quality.evidence import Evidence, Table
from quality.hostile import SCENARIOS, Scenario
from quality.population import SKILLS
from quality.ranking import judge, judge_each
from quality.scored import Anchors, Groups, agreement


def liars(evidence: Evidence) -> Table:
    """MoR with liars: further clients who join, and in each domain the best client itself turning.

    A turned client is compared with the same population without it as well: what it knew is lost either way.
    """
    draws = evidence.drawn(draws=max(2, evidence.draws // 4))
    experts = _experts(evidence)
    arm, found = MixtureOfRewards(), {}
    clean = np.tile(judge(arm, draws, evidence.held_out, evidence.executor), (len(experts), 1))
    absent = judge_each(
        arm,
        [_without(anchors, evidence.held_out, expert) for expert in experts for anchors in draws],
        evidence.executor,
    )
    for scenario in SCENARIOS:
        results = {"clean": clean, "absent": absent}
        for way in ("joined", "turned"):
            cases = [
                _told(scenario, way, anchors, evidence.held_out, expert, seed)
                for expert in experts
                for seed, anchors in enumerate(draws)
            ]
            results[way] = judge_each(arm, cases, evidence.executor)
        weights = [
            _weight(_told(scenario, "joined", anchors, evidence.held_out, expert, seed)[0], len(evidence.clients))
            for expert in experts
            for seed, anchors in enumerate(draws)
        ]
        by_clean = evidence.standings(results, "clean")
        found[scenario.title] = {
            "weight": 100 * max(weights),
            "joined": asdict(by_clean["joined"].behind),
            "turned": asdict(by_clean["turned"].behind),
            "turned against absent": asdict(evidence.standings(results, "absent")["turned"].behind),
            "worst expert, turned": max(
                100 * float((clean - results["turned"]).reshape(len(experts), len(draws), -1)[k].mean())
                for k in range(len(experts))
            ),
        }
    return found


def _weight(anchors: Anchors, honest: int) -> float:
    """The largest mean gate weight that a liar among the clients has, over the anchors' own inputs."""
    mixture = MixtureOfRewards().mixture(anchors)
    return float(mixture.weights(anchors.pairs.inputs, mixture.clients)[:, honest:].mean(axis=0).max())


def _experts(evidence: Evidence) -> list[int]:
    right, domains = agreement(evidence.held_out.scores), np.array(evidence.held_out.domains)
    return [int(right[domains == domain].mean(axis=0).argmax()) for domain in SKILLS]


def _told(
    scenario: Scenario, way: str, anchors: Anchors, live: Groups, expert: int, seed: int
) -> tuple[Anchors, Groups]:
    tell = scenario.joined if way == "joined" else scenario.turned
    return tell(anchors, live, expert, 2 * seed)


def _without(anchors: Anchors, live: Groups, client: int) -> tuple[Anchors, Groups]:
    def rest(groups: Groups) -> Groups:
        return groups.said(np.delete(groups.scores, client, axis=1))

    return Anchors(rest(anchors.pairs)), rest(live)
