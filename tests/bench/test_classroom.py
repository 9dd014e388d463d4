"""Second population: pictures with exact answers, splits that share no material, and its base model's drafts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
from quality.base_model import write_drafts
from quality.population import FOLDERS, load
from quality.populations.classroom.encoders import begin_always
from quality.populations.classroom.maps import Country, Maps
from three_domains.assembly import train_tokenizer
from three_domains.questions import SPLITS, AnnotatedPicture
from transformers import AutoTokenizer

CLASSROOM = load(FOLDERS / "classroom")
DOMAINS = [
    "shapes",
    pytest.param("digits", marks=pytest.mark.downloads),
    pytest.param("maps", marks=pytest.mark.downloads),
]


def pictures(domain: str, split: str = "client", count: int = 40) -> Iterator[AnnotatedPicture]:
    return CLASSROOM.picture_maker(domain, 0).pictures(split, count, Random(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_sub_skill_has_questions_and_every_question_one_right_answer(domain: str) -> None:
    answers, rng = CLASSROOM.answers[domain], Random(0)
    questions = [question for picture in pictures(domain) for question in picture.questions]
    assert {CLASSROOM.skill(question.gold) for question in questions} == set(CLASSROOM.skills[domain])
    for gold in (question.gold for question in questions):
        right, wrong = answers.right(gold, rng), answers.wrong(gold, rng)
        assert answers.correct(gold, right), (gold, right)
        assert not answers.correct(gold, wrong), (gold, wrong)
        assert answers.taste(gold, right) > answers.taste(gold, wrong) + 0.5
        assert not answers.correct(gold, f"{right} or {wrong}")
    drafts = [(gold, answers.draft(gold, rng)) for gold in (question.gold for question in questions)]
    assert 0.2 < sum(answers.correct(*draft) for draft in drafts) / len(drafts) < 0.8


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_material_is_in_two_splits(domain: str) -> None:
    used = [{source for picture in pictures(domain, split) for source in picture.sources} for split in SPLITS]
    assert all(used)
    assert sum(map(len, used)) == len(set.union(*used))


def test_each_domain_likes_another_form_of_answer() -> None:
    liked = {answers.right(_GOLD, Random(0)) for answers in CLASSROOM.answers.values()}
    assert liked == {"The ball is red.", "red", "The ball is red on this map."}


_GOLD = {"task": "colour", "answer": "red", "options": ["red", "blue"], "sentence": "the ball is {}."}


def square(name: str, west: float, south: float, side: float) -> Country:
    east, north = west + side, south + side
    return Country(name, "Africa", ([(west, south), (east, south), (east, north), (west, north)],))


def test_a_map_tells_the_larger_country_and_the_side() -> None:
    countries = {c.name: c for c in (square("Large", 0, 0, 12), square("Small", 20, 2, 5))}
    countries |= {f"Far {n}": square(f"Far {n}", 100, 10 * n - 60, 8) for n in range(13)}
    maker = Maps(countries, 0)
    picture = maker._picture("Large", "Small", Random(0))
    assert picture is not None
    golds = {question.gold["task"]: question.gold["answer"] for question in picture.questions}
    assert golds == {"continent": "Africa", "larger": "red", "side": "east"}
    back = maker._picture("Small", "Large", Random(0))
    assert back is not None
    assert [question.gold["answer"] for question in back.questions] == ["Africa", "blue", "west"]


def test_drafts_have_a_caption_and_answers_for_each_picture(tmp_path: Path) -> None:
    shapes = replace(CLASSROOM, skills={"shapes": CLASSROOM.skills["shapes"]})
    write_drafts(shapes, tmp_path / "server", 3)
    rows = [json.loads(line) for line in (tmp_path / "server/sft.jsonl").read_text().splitlines()]
    captions = [row for row in rows if row["prompt"][0]["content"][1]["text"] == "Describe the picture."]
    assert len(captions) == len({row["images"][0] for row in rows}) == 3
    assert all((tmp_path / "server" / row["images"][0]).is_file() for row in rows)
    assert all(row["completion"][0]["content"] for row in rows)


def test_an_empty_answer_has_a_token(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(["a red one"] * 4, 300)
    assert tokenizer("")["input_ids"] == []
    begin_always(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    first = loaded("")["input_ids"]
    assert len(first) == 1
    assert loaded("a")["input_ids"][:1] == loaded("a", "red")["input_ids"][:1] == first
