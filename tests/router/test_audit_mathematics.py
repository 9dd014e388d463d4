"""The sequential test of audited groups: few false alarms, and few groups until a client that misleads is found."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mor_router.mathematics.audit_draw import AuditBudget
from mor_router.mathematics.audit_test import AuditedGroup, audit_result, distinct_pairs, worth
from mor_router.mathematics.suspicion import Suspicion, situations, suspects

THRESHOLD = math.log(100)
SURE = {"bad": 4.0, "a": 1.0, "b": 1.0}
"""Slopes of three clients of equal weight, one of which is trusted most."""


def groups(
    random: np.random.Generator, count: int, accuracy: dict[str, float], slope: float = 0.8, **more: float
) -> list[AuditedGroup]:
    """Groups of four responses whose first is better; each client ranks it higher with its accuracy."""
    made = []
    for _ in range(count):
        scores = {}
        for client, right in accuracy.items():
            scores[client] = random.normal(0, 1, 4)
            scores[client][0] = scores[client][1] + (1 if random.random() < right else -1) * random.exponential(1.5)
        even = dict.fromkeys(accuracy, 1 / len(accuracy))
        made.append(
            AuditedGroup(
                pairs=((0, 1),),
                scores=scores,
                weights=even,
                slopes=dict.fromkeys(accuracy, slope),
                rewards=np.zeros(4),
                **more,
            )
        )
    return made


def test_a_client_at_chance_that_claims_little_is_rarely_distrusted() -> None:
    random = np.random.default_rng(3)
    alarms = sum(
        result.log_evidence >= THRESHOLD
        for _ in range(60)
        for result in audit_result(groups(random, 200, {"a": 0.5, "b": 0.5, "c": 0.75}, slope=0.1)).values()
    )
    assert alarms <= 0.01 * 2 * 60 + 4


@pytest.mark.parametrize(("right", "needed"), [(0.05, 50), (0.25, 300)])
def test_a_client_that_misleads_is_found_within_few_groups(right: float, needed: int) -> None:
    random = np.random.default_rng(4)
    for _ in range(10):
        found = audit_result(groups(random, needed, {"bad": right, "good": 0.75, "other": 0.75}))
        assert found["bad"].log_evidence >= THRESHOLD
        assert max(found["good"].log_evidence, found["other"].log_evidence) < THRESHOLD
        assert found["bad"].reason.startswith("right in ")


def test_a_client_without_influence_and_inputs_unlike_all_anchors_are_no_evidence() -> None:
    random = np.random.default_rng(5)
    assert audit_result(groups(random, 100, {"bad": 0.0, "good": 0.9}, support=0.0))["bad"].log_evidence == 0
    [group, *_] = groups(random, 1, {"bad": 0.0, "good": 0.9})
    shadow = AuditedGroup(group.pairs, group.scores, {"good": 1.0}, {"good": 1.0}, group.rewards)
    assert audit_result([shadow] * 100)["bad"].log_evidence == 0


def test_the_share_of_audits_is_kept_in_the_long_run_and_suspicion_has_audits_at_once() -> None:
    random = np.random.default_rng(6)
    for share in (0.02, 0.05):
        budget, drawn = AuditBudget(share), 0
        for place in range(20_000):
            if random.random() < budget.probability(1.0 if place % 2000 < 300 else 0.0):
                budget.spend()
                drawn += 1
        assert drawn / 20_000 == pytest.approx(share, rel=0.1)
    budget = AuditBudget(0.02)
    assert budget.probability(1.0) == 0.5
    assert budget.probability(0.4) == 0.2
    for _ in range(16):
        budget.spend()
    assert budget.probability(1.0) < 0.01
    assert AuditBudget(0).probability(1.0) == 0
    with pytest.raises(ValueError, match="an audit share of 2"):
        AuditBudget(2)


def labelled(random: np.random.Generator, bad: float, **more: Any) -> AuditedGroup:
    """A group of five responses in order of quality, fully labelled; ``bad`` scales the scores of one client."""
    truth = np.arange(5.0)[::-1]
    scores = {name: truth + random.normal(0, 1.0, 5) for name in ("bad", "a", "b")}
    scores["bad"] = bad * scores["bad"]
    even = dict.fromkeys(scores, 1 / 3)
    pairs = tuple((i, j) for i in range(5) for j in range(i + 1, 5))
    return AuditedGroup(pairs, scores, even, dict.fromkeys(scores, 0.8), np.zeros(5), **more)


def test_a_client_that_reverses_fully_labelled_groups_is_found_within_ten() -> None:
    random = np.random.default_rng(7)
    for _ in range(20):
        found = audit_result([labelled(random, -1.0) for _ in range(10)])
        assert found["bad"].log_evidence >= THRESHOLD
        assert max(found["a"].log_evidence, found["b"].log_evidence) < THRESHOLD


def test_a_client_that_turns_late_or_in_one_situation_is_found_by_audits_under_suspicion() -> None:
    random = np.random.default_rng(8)
    kinds = {True: ("repeated responses",), False: ("distinct responses",)}
    for _ in range(10):
        honest = [labelled(random, 1.0, situations=kinds[n % 2 == 0]) for n in range(60)]
        late = [labelled(random, -1.0, situations=kinds[True], suspects=frozenset({"bad"})) for _ in range(9)]
        found = audit_result([*honest, *late])
        assert found["bad"].log_evidence >= THRESHOLD
        assert "under suspicion" in found["bad"].reason
        assert max(found["a"].log_evidence, found["b"].log_evidence) < THRESHOLD


def test_a_suspected_honest_client_is_not_distrusted() -> None:
    random = np.random.default_rng(9)
    suspected = [labelled(random, 1.0, suspects=frozenset({"bad", "a", "b"})) for _ in range(200)]
    assert max(result.log_evidence for result in audit_result(suspected).values()) < 1


def test_near_ties_are_no_evidence_and_groups_that_show_little_are_worth_no_audit() -> None:
    random = np.random.default_rng(10)
    clear = labelled(random, -1.0)
    faint = replace(clear, scores={**clear.scores, "bad": 0.01 * clear.scores["bad"]})
    assert audit_result([clear] * 10)["bad"].log_evidence >= THRESHOLD
    assert audit_result([faint] * 10)["bad"].log_evidence < 1
    assert worth(clear, "bad") == 1
    assert worth(replace(clear, scores={**clear.scores, "bad": -clear.scores["bad"]}), "bad") == 1
    assert worth(faint, "bad") < 0.05
    assert worth(replace(clear, pairs=((0, 4),)), "bad") == 0.5
    assert (
        worth(replace(clear, support=0.0), "bad") == worth(clear, "absent") == worth(replace(clear, pairs=()), "a") == 0
    )


def test_pairs_that_could_be_labelled_name_each_text_once() -> None:
    assert distinct_pairs(("a", "b", "a", "c")) == ((0, 1), (0, 3), (1, 3))
    assert distinct_pairs(("a", "a")) == ()


def test_a_client_whose_claims_hold_is_no_more_often_distrusted_than_stated_whatever_its_accuracy() -> None:
    """Labels are drawn from the claims themselves, so the claims hold exactly."""
    random = np.random.default_rng(21)
    alarms = 0
    for run in range(60):
        beta = (0.1, 0.5, 1.5)[run % 3]
        made = []
        for _ in range(120):
            scores = random.normal(size=2)
            right = random.random() < 1 / (1 + np.exp(-beta * (scores[0] - scores[1])))
            pair = ((0, 1),) if right else ((1, 0),)
            made.append(AuditedGroup(pair, {"client": scores}, {"client": 1.0}, {"client": beta}, np.zeros(2)))
        alarms += audit_result(made)["client"].log_evidence >= THRESHOLD
    assert alarms <= 2


@pytest.mark.parametrize(("size", "needed"), [(0.5, 60), (1.0, 40), (2.0, 25)])
def test_loud_noise_is_found_the_sooner_the_louder_it_is(size: float, needed: int) -> None:
    random = np.random.default_rng(22)
    until = []
    for _ in range(10):
        noisy = [labelled(random, 1.0) for _ in range(needed)]
        noisy = [
            replace(group, scores={**group.scores, "bad": size * random.choice((-1.0, 1.0), size=5)}, slopes=SURE)
            for group in noisy
        ]
        found = audit_result(noisy)
        until.append(found["bad"].log_evidence >= THRESHOLD)
        assert max(found["a"].log_evidence, found["b"].log_evidence) < THRESHOLD
    assert sum(until) >= 7


def test_noise_of_a_client_without_a_part_in_the_reward_and_the_scores_of_others_are_no_evidence() -> None:
    random = np.random.default_rng(23)
    calm = [labelled(random, 1.0) for _ in range(40)]
    loud = [
        replace(group, scores={**group.scores, "bad": 4 * random.choice((-1.0, 1.0), size=5)}, slopes=SURE | {"bad": 0})
        for group in calm
    ]
    assert audit_result(loud)["bad"].log_evidence < 1
    for name in ("a", "b"):
        assert audit_result(loud)[name].log_evidence == pytest.approx(
            audit_result([replace(group, slopes=SURE | {"bad": 0}) for group in calm])[name].log_evidence
        )


def test_suspicion_rises_with_opposition_in_one_kind_of_group_and_falls_without() -> None:
    suspicion, kind, other = Suspicion(), ("repeated responses",), ("distinct responses",)
    for _ in range(100):
        suspicion.oppose(1.0, 1.0, kind)
    for _ in range(6):
        suspicion.oppose(-1.0, 1.0, kind)
        suspicion.oppose(-1.0, 0.0, other)
    assert suspicion.opposed(kind)
    assert not suspicion.opposed(other)
    for _ in range(12):
        suspicion.oppose(1.0, 1.0, kind)
    assert not suspicion.opposed(kind)


def test_discord_is_measured_against_that_on_the_anchors() -> None:
    random, kind = np.random.default_rng(24), ("a kind",)

    def after(disagreement: float | None, apart: float) -> frozenset[str]:
        suspicion = Suspicion(disagreement)
        for _ in range(200):
            suspicion.disagree(-0.1 if random.random() < apart else 0.9, 1.0, kind)
        return suspects({"client": suspicion}, kind)

    assert after(0.1, 0.7) == {"client"}
    assert after(0.1, 0.15) == frozenset()
    assert after(0.3, 0.7) == after(0.9, 0.9) == after(None, 0.7) == frozenset()


def test_discord_counts_in_all_kinds_until_a_kind_has_groups_enough_of_its_own() -> None:
    suspicion = Suspicion(0.1)
    for _ in range(29):
        suspicion.disagree(1.0, 1.0, ("a new picture",))
    for _ in range(40):
        suspicion.disagree(0.0, 1.0, ("a known picture",))
    assert suspicion.discord(("a new picture",)) > math.log(50)
    suspicion.disagree(1.0, 1.0, ("a new picture",))
    assert suspicion.discord(("a new picture",)) == 0
    assert suspicion.discord(("a known picture",)) > math.log(50)


def test_of_clients_in_discord_the_first_is_suspected_and_silence_is_no_discord() -> None:
    kind = ("a kind",)
    known = {"loud": Suspicion(0.1), "other": Suspicion(0.2), "silent": Suspicion(0.1)}
    for _ in range(60):
        known["loud"].disagree(0.0, 1.0, kind)
        known["other"].disagree(0.0, 0.5, kind)
        known["silent"].disagree(math.nan, 1.0, kind)
    assert suspects(known, kind) == {"loud"}
    known["loud"].forget_discord()
    assert suspects(known, kind) == {"other"}


def test_the_situations_are_what_a_client_sees() -> None:
    assert situations(("a", "a", "b"), known_picture=True) == ("repeated responses", "a known picture", "3 responses")
    assert situations(("a", "b"), known_picture=False) == ("distinct responses", "a new picture", "2 responses")
