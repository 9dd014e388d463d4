"""Figures of a step's responses: how alike they are, and how far the clients agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mor_core.wire import ClientScore, RewardRecord
from mor_trainer.reporting.response_figures import agreement, identical_ratio

from tests.trainer.records import rollout_of
from tests.trainer.stages import reward_record


def record(prompt: str, *responses: str) -> RewardRecord:
    rollout = rollout_of()
    asked = rollout.prompt.model_copy(update={"prompt_id": prompt})
    given = {"prompt": asked, "responses": responses, "finish_reasons": ("stop",) * len(responses)}
    return reward_record(rollout.model_copy(update=given), (0.0,) * len(responses))


def scored(*scores: tuple[float, ...], weights: tuple[float, ...] | None = None) -> RewardRecord:
    clients = tuple(
        ClientScore(client=f"c{place}", status="ok", raw=given, calibrated=given, weight=weight)
        for place, (given, weight) in enumerate(zip(scores, weights or (0.5,) * len(scores), strict=True))
    )
    return record("p", *("text",) * len(scores[0])).model_copy(update={"clients": clients})


def test_one_answer_to_all_prompts_is_a_collapse_and_certainty_about_each_is_none() -> None:
    assert identical_ratio([record("p", "tn", "tn"), record("q", "tn ", "tn")]) == 1.0
    assert identical_ratio([record("p", "two", "two"), record("q", "red", "red")]) == 0.5
    assert identical_ratio([record("p", "two", "two"), record("p", "two", "two")]) is None


@given(st.integers(2, 5), st.integers(2, 8), st.integers(0, 99))
def test_agreement_is_the_mean_correlation_of_two_clients(clients: int, group: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(size=(clients, group))
    expected = np.corrcoef(scores)[np.triu_indices(clients, 1)].mean()
    assert agreement(scored(*map(tuple, scores.tolist()))) == pytest.approx(expected, abs=1e-9)


def test_only_clients_with_weight_and_a_preference_can_agree() -> None:
    assert agreement(scored((1.0, 2.0), (3.0, 3.0))) is None
    assert agreement(scored((1.0, 2.0), (2.0, 1.0), weights=(1.0, 0.0))) is None
    assert agreement(scored((1.0, 2.0), (2.0, 1.0), (3.0, 3.0))) == pytest.approx(-1)
