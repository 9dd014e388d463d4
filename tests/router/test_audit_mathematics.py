"""The sequential test of audited groups: few false alarms, and few groups until a client that misleads is found."""

from __future__ import annotations

import math

import numpy as np
import pytest
from mor_router.mathematics.audit_draw import audit_probability
from mor_router.mathematics.audit_test import AuditedGroup, audit_result

THRESHOLD = math.log(100)


def groups(random: np.random.Generator, count: int, accuracy: dict[str, float], **more: float) -> list[AuditedGroup]:
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
                pairs=((0, 1),), scores=scores, weights=even, slopes=dict.fromkeys(accuracy, 0.8), rewards=np.zeros(4),
                **more,
            )
        )  # fmt: skip
    return made


def test_a_client_at_chance_is_rarely_distrusted() -> None:
    random = np.random.default_rng(3)
    alarms = sum(
        result.log_evidence >= THRESHOLD
        for _ in range(60)
        for result in audit_result(groups(random, 200, {"a": 0.5, "b": 0.5, "c": 0.75})).values()
    )
    assert alarms <= 0.01 * 2 * 60 + 4


@pytest.mark.parametrize(("right", "needed"), [(0.05, 45), (0.25, 300)])
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


def test_the_mean_probability_is_the_share() -> None:
    assert audit_probability(0.02) == 0.02
    with pytest.raises(ValueError, match="an audit share of 2"):
        audit_probability(2)
