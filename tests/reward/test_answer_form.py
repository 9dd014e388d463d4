"""Forms of answers: rounding, centring, ranks and noise keep the contract, and repetition reveals nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from mor_core.wire import Card
from mor_reward.answers import gaussian_budget
from mor_reward.answers.answer_form import AnswerForm, ranks, rounded, step_of
from mor_reward.answers.answer_ledger import read_spent
from mor_reward.app import create_app
from mor_reward.conformance import run_checks
from mor_reward.conformance.checks import CHECKS
from mor_reward.conformance.endpoint import Endpoint
from pydantic import ValidationError

from tests.reward.limited import OTHER, group, limited, scores
from tests.reward.served import TOKEN, service

pytestmark = pytest.mark.anyio

RESPONSES = ["a", "a red tree", "the red tree there", "green trees between the elms"]
FORMS: list[dict[str, Any]] = [
    {"score_bits": 4},
    {"score_centred": True, "score_bits": 4},
    {"score_ranks": True},
    {"score_ranks": True, "score_bits": 2},
    {"score_noise": 0.5},
    {"score_noise": 0.5, "score_centred": True, "score_bits": 6},
    {"score_noise": 2.0, "score_ranks": True},
]


def test_rounding_takes_the_nearest_of_the_stated_values() -> None:
    given = np.linspace(-3, 3, 101)
    found = rounded(given, 3, 2.0)
    allowed = np.linspace(-2, 2, 8)
    assert np.allclose(sorted(set(found)), allowed, atol=1e-6)
    assert np.abs(found - np.clip(given, -2, 2)).max() <= 2 / 7 + 1e-6
    assert (np.diff(found) >= 0).all()


def test_ranks_span_the_same_range_in_groups_of_any_size() -> None:
    assert ranks(np.array([3.0, 1.0])).tolist() == [1, -1]
    assert ranks(np.array([5.0, 100.0, -2.0])).tolist() == [0, 1, -1]
    assert ranks(np.array([1.0, 1.0, 4.0])).tolist() == [-0.5, -0.5, 1]
    assert ranks(np.array([1.0, 1.0])).tolist() == [0, 0]
    assert ranks(np.array([7.0])).tolist() == [0]


def test_companions_do_not_shift_the_steps_of_the_rounding() -> None:
    """Else the same response among many others would show its score exactly."""
    form, random = AnswerForm(bits=3, centred=True), np.random.default_rng(0)
    shown = []
    for _ in range(200):
        group = np.array([0.4, 1.9, *random.normal(0, 2, 3)])
        found = form(group, np.zeros(5))
        shown.append(found[1] - found[0])
    assert len(set(shown)) == 1


def test_equal_differences_stay_exactly_equal() -> None:
    form, random = AnswerForm(bits=4, centred=True), np.random.default_rng(0)
    step = float(np.float32(16 / 15))
    for size in (2, 3, 8):
        for _ in range(100):
            found = form(random.normal(0, 3, size), np.zeros(size))
            assert set(np.abs(found[:, None] - found).ravel()) <= {n * step for n in range(16)}
            assert abs(found.mean()) < 1e-6


@pytest.mark.parametrize("form", [{}, {"bits": 4}, {"bits": 7}, {"noise": 0.3}, {"noise": 1e-3}], ids=str)
def test_centred_scores_say_nothing_of_the_level_of_their_group(form: dict[str, Any]) -> None:
    """Not even in their low bits, from which a level is computed where a mean was subtracted from the scores."""
    shaped, random = AnswerForm(centred=True, **form), np.random.default_rng(0)
    step = step_of(form["bits"], 8.0) if "bits" in form else 2.0**-20
    for size in (1, 2, 3, 5, 8):
        scores, normals = random.uniform(-1, 1, size), random.normal(0, 1, size)
        shown = {tuple(shaped(scores, normals))}
        for steps in (1, 2, 3, 4):
            with_noise = "noise" in form  # which moves each score by whole steps of its own
            moved = (scores, normals + steps / 256) if with_noise else (scores - steps * step, normals)
            shown.add(tuple(shaped(*moved)))
        assert len(shown) == 1
        assert abs(np.mean(*shown)) < 1e-6
    assert shaped(random.normal(0, 1, 1), random.normal(0, 1, 1)).tolist() == [0]


def test_noise_is_added_before_scores_are_centred() -> None:
    form = AnswerForm(centred=True, noise=1.0)
    found = form(np.array([1.0, 2.0, 30.0]), np.array([0.5, -1.0, 0.0]))
    assert np.allclose(found, np.array([1.5, 1.0, 8.0]) - 3.5)


@pytest.fixture
def check_form(tmp_path: Path) -> Iterator[Any]:
    def outcomes(**limits: Any) -> dict[str, str]:
        small = {"max_items": 2, "max_responses": 4, "max_request_bytes": 1 << 20, "max_image_bytes": 100_000}
        with TestClient(create_app(limited(tmp_path, **small, **limits)), raise_server_exceptions=False) as client:

            def handle(request: httpx.Request) -> httpx.Response:
                answer = client.request(
                    request.method, request.url.path, content=request.read(), headers=dict(request.headers)
                )
                return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)

            endpoint = Endpoint("http://reward", TOKEN, timeout_s=5, transport=httpx.MockTransport(handle))
            return {result.check: result.outcome for result in run_checks(endpoint)}

    yield outcomes


@pytest.mark.parametrize("form", FORMS, ids="-".join)
def test_every_form_keeps_the_contract(form: dict[str, Any], check_form: Any) -> None:
    assert check_form(**form) == dict.fromkeys(CHECKS, "kept")


async def test_a_question_that_is_asked_again_gets_the_same_noise(tmp_path: Path) -> None:
    settings = limited(tmp_path, score_noise=1.0)
    async with service(settings) as http:
        first = await scores(http, group("1", RESPONSES))
        again = {
            "as another item": group("2", RESPONSES),
            "for another objective": group("1", RESPONSES) | {"objective": "be brief"},
            "in another order": group("1", RESPONSES[::-1]),
            "as plain text": group("1", RESPONSES) | {"messages": [{"role": "user", "content": "What?"}]},
        }
        for how, item in again.items():
            assert sorted(await scores(http, item)) == sorted(first), how
        assert await scores(http, group("1", RESPONSES), token=OTHER) == first
        assert await scores(http, group("1", RESPONSES[1:3])) == first[1:3]
        assert await scores(http, group("1", RESPONSES, question="Which?")) != first
    async with service(settings) as http:  # after a restart
        assert await scores(http, group("1", RESPONSES)) == first


async def test_noise_has_the_stated_standard_deviation(tmp_path: Path) -> None:
    async with service(limited(tmp_path, score_noise=0.5, max_responses=64)) as http:
        found = np.array(
            [await scores(http, group("g", ["a", "be"], question=f"Question {number}")) for number in range(400)]
        )
    errors = found - np.array([1 / 7, 2 / 7 + 0.37])
    assert abs(errors.mean()) < 0.08
    assert 0.45 < errors.std() < 0.55
    assert abs(np.corrcoef(errors.T)[0, 1]) < 0.15


async def test_another_version_of_the_model_gets_other_noise(tmp_path: Path) -> None:
    settings = limited(tmp_path, score_noise=1.0)
    async with service(settings) as http:
        first = await scores(http, group("1", RESPONSES))
    scorer = tmp_path / "scorer.py"
    scorer.write_text(scorer.read_text() + "# a new version with equal scores\n")
    async with service(settings) as http:
        changes = np.array(await scores(http, group("1", RESPONSES))) - np.array(first)
    assert np.abs(changes).max() > 0.05


async def test_the_card_states_the_limits(tmp_path: Path) -> None:
    settings = limited(tmp_path, score_bits=4, score_centred=True, queries_per_day=100, distillation="forbidden")
    async with service(settings) as http:
        card = Card.model_validate_json((await http.get("/v1/card")).content)
    assert card.answers is not None
    assert card.answers.model_dump(exclude_none=True) == {
        "bits": 4,
        "range": 8.0,
        "ranks": False,
        "centred": True,
        "queries_per_day": 100,
    }
    assert card.distillation == "forbidden"
    async with service(limited(tmp_path)) as http:
        assert (await http.get("/v1/card")).json()["answers"] is None


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"score_ranks": True, "score_centred": True}, "mean 0 already"),
        ({"answer_epsilon_per_day": 1.0}, "set MOR_SCORE_NOISE too"),
        ({"score_noise": 1.0, "answers_dir": None}, "set MOR_ANSWERS_DIR"),
        ({"queries_per_day": 5, "answers_dir": None}, "set MOR_ANSWERS_DIR"),
        ({"score_bits": 0}, "score_bits"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(limits: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=problem):
        limited(tmp_path, **limits)


async def test_a_changed_deviation_of_the_noise_does_not_show_the_score(tmp_path: Path) -> None:
    """Two answers with one draw and two deviations would be two equations for the score and the draw."""
    answered = []
    for noise in (1.0, 0.5):
        async with service(limited(tmp_path, score_noise=noise, max_responses=64)) as http:
            answered.append(np.array(await scores(http, group("1", list("abcdfghi")))))
    solved = 2 * answered[1] - answered[0]
    assert np.abs(solved - 1 / 7).max() > 0.1


async def test_a_changed_deviation_of_the_noise_costs_the_budget_again(tmp_path: Path) -> None:
    limits = {"score_sensitivity": 0.1, "answer_epsilon_per_day": 5.0}
    for noise in (2.0, 0.5):
        async with service(limited(tmp_path, score_noise=noise, **limits)) as http:
            await scores(http, group("1", ["a"]))
    (spent,) = read_spent(tmp_path / "answers")
    costs = [gaussian_budget.cost(0.1, noise) for noise in (2.0, 0.5)]
    assert spent.rho == pytest.approx(sum(costs))
