"""Gold checkers are strict about truth and lenient about format; tastes rate answers as documented."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from three_domains.domains import ANSWERS
from three_domains.questions import numbers, preference

LIST = {"domain": "detail", "task": "list", "kinds": ["bird", "coin"]}
COUNT = {"domain": "detail", "task": "count", "kinds": ["bird", "coin", "flower"]}
CORNER = {"domain": "detail", "task": "corner", "kinds": ["bird", "coin"], "corner": "top left", "kind": "bird"}
EMPTY = {**CORNER, "kind": "nothing"}
REGION = {"domain": "medical", "task": "region", "region": "frontal", "side": "left"}
SIDE = {"domain": "medical", "task": "side", "region": "frontal", "side": "left"}
PLANE = {"domain": "medical", "task": "plane", "plane": "axial"}
VALUE = {"domain": "chart", "task": "value", "target": "tallest", "value": 72.3, "unit": "years"}
SHARE = {"domain": "chart", "task": "value", "target": "first", "value": 13.2, "unit": "percent"}
BARS = {"domain": "chart", "task": "count", "value": 4.0, "unit": "bars"}

CASES: list[tuple[dict[str, Any], str, bool]] = [
    (LIST, "The picture shows a bird and a coin.", True),
    (LIST, "coin, BIRD", True),
    (LIST, "a bird", False),
    (LIST, "a bird, a coin and a flower", False),
    (LIST, "some things", False),
    (COUNT, "3", True),
    (COUNT, "There are three things in the picture.", True),
    (COUNT, "three things: a bird, a coin and a vehicle", False),
    (COUNT, "more than two", False),
    (CORNER, "There is a bird at the top left.", True),
    (CORNER, "a bird or a coin", False),
    (CORNER, "nothing", False),
    (EMPTY, "It is empty.", True),
    (EMPTY, "a bird", False),
    (REGION, "the left frontal lobe", True),
    (REGION, "Frontal lobe, LEFT side.", True),
    (REGION, "the frontal lobe", False),
    (REGION, "the right frontal lobe", False),
    (REGION, "the left or right frontal lobe", False),
    (REGION, "the left frontal lobe, probably a tumour", False),
    (SIDE, "left", True),
    (SIDE, "the left temporal lobe", False),
    (PLANE, "a transverse slice", True),
    (PLANE, "axial or coronal", False),
    (VALUE, "70 years", True),
    (VALUE, "The tallest bar is at 75 years.", True),
    (VALUE, "72,3 years", True),
    (VALUE, "70", False),
    (VALUE, "70 children", False),
    (VALUE, "between 70 and 75 years", False),
    (VALUE, "55 years", False),
    (SHARE, "13 %", True),
    (SHARE, "13 percent", True),
    (BARS, "four", True),
    (BARS, "4 bars", True),
    (BARS, "5 bars", False),
    (BARS, "4 years", False),
]


@pytest.mark.parametrize(("gold", "response", "correct"), CASES, ids=[f"{case[1]}-{case[2]}" for case in CASES])
def test_checker(gold: dict[str, Any], response: str, correct: bool) -> None:
    assert ANSWERS[gold["domain"]].correct(gold, response) is correct


GOLDS = [LIST, COUNT, CORNER, EMPTY, REGION, SIDE, PLANE, VALUE, SHARE, BARS]


@pytest.mark.parametrize("gold", GOLDS, ids=lambda gold: f"{gold['domain']}-{gold['task']}")
def test_right_answers_are_correct_and_false_ones_are_not(gold: dict[str, Any]) -> None:
    answers, rng = ANSWERS[gold["domain"]], Random(1)
    for _ in range(50):
        right, wrong = answers.right(gold, rng), answers.wrong(gold, rng)
        assert answers.correct(gold, right), right
        assert not answers.correct(gold, wrong), wrong
        assert answers.taste(gold, right) > answers.taste(gold, wrong)


@pytest.mark.parametrize("gold", GOLDS, ids=lambda gold: f"{gold['domain']}-{gold['task']}")
def test_drafts_are_mixed_short_and_leave_room_to_improve(gold: dict[str, Any]) -> None:
    answers, rng = ANSWERS[gold["domain"]], Random(2)
    drafts = [answers.draft(gold, rng) for _ in range(300)]
    share = sum(answers.correct(gold, draft) for draft in drafts) / len(drafts)
    assert 0.1 < share < 0.7
    assert max(len(draft.split()) for draft in drafts) <= 18


def test_the_chosen_answer_has_the_higher_rating() -> None:
    rng = Random(3)
    for gold in GOLDS:
        answers = ANSWERS[gold["domain"]]
        for _ in range(30):
            pair = preference(answers, gold, rng, contrasts=0.5)
            assert pair is not None
            assert answers.taste(gold, pair[0]) >= answers.taste(gold, pair[1]) + 0.5


def test_tastes_differ_in_style() -> None:
    detail, medical, chart = (ANSWERS[name] for name in ("detail", "medical", "chart"))
    assert detail.taste(LIST, "The picture shows a bird and a coin.") > detail.taste(LIST, "a bird")
    assert chart.taste(VALUE, "70 years") > chart.taste(VALUE, "The tallest bar is at 70 years, as the picture shows.")
    assert medical.taste(REGION, "the left frontal lobe") > medical.taste(
        REGION, "the left frontal lobe, probably a tumour"
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("about 6.5", [6.5]), ("6,5 children", [6.5]), ("Three or 4", [3.0, 4.0]), ("someone", []), ("at -2", [-2.0])],
)
def test_numbers(text: str, wanted: list[float]) -> None:
    assert numbers(text) == wanted
