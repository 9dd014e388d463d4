"""Population, labels of its pairs, and the two objectives."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pytest
from mor_core.datafiles import read_preferences
from quality.material import PairShare, questions, taste, write_preferences
from quality.models import pool
from quality.objectives import brief, complete, prefer
from quality.population import CLIENTS, SKILLS, options, skill
from three_domains.chart import count_question, value_question
from three_domains.detail import make_questions as detail_questions
from three_domains.domains import ANSWERS
from three_domains.medical import make_questions as medical_questions
from three_domains.questions import Question

QUESTIONS: list[Question] = [
    *detail_questions({"top left": "bird", "bottom right": "coin"}, Random(0)),
    *medical_questions("axial", "frontal", "left", Random(0)),
    *(value_question(target, 42.0, "years") for target in ("tallest", "last", "start", "end")),
    count_question(4),
]


def test_every_question_has_a_known_skill_and_every_skill_has_a_question() -> None:
    assert {skill(question.gold) for question in QUESTIONS} == {one for skills in SKILLS.values() for one in skills}


def test_each_skill_has_clients_that_know_it_and_clients_that_do_not() -> None:
    for one in itertools.chain.from_iterable(SKILLS.values()):
        experts = [client for client in CLIENTS if one in client.skills]
        assert 2 <= len(experts) < len(CLIENTS), one
    assert len({client.name for client in CLIENTS}) == len(CLIENTS) >= 8
    assert len({client.architecture for client in CLIENTS}) >= 4


def test_options_name_the_given_encoders() -> None:
    for client in CLIENTS:
        found = options(client.architecture, client.epochs, "/of/base", "/of/parts")
        assert any(option.startswith("/of/") for option in found)
        assert not any("{" in option for option in found)


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_the_objectives_agree_on_truth_and_differ_in_length(question: Question) -> None:
    answers = ANSWERS[question.gold["domain"]]
    right, wrong = answers.right(question.gold, Random(1)), answers.wrong(question.gold, Random(1))
    for objective in (complete, brief):
        assert objective(question.gold, right) > objective(question.gold, wrong) - 0.75
    pairs = [pair for seed in range(60) if (pair := prefer("complete", question.gold, Random(seed)))]
    assert pairs
    assert all(complete(question.gold, chosen) > complete(question.gold, rejected) for chosen, rejected in pairs)


def test_the_objectives_disagree_on_some_pairs() -> None:
    pairs = [
        (question.gold, pair)
        for question in QUESTIONS
        for seed in range(20)
        if (pair := prefer("complete", question.gold, Random(seed)))
    ]
    against = [brief(gold, chosen) < brief(gold, rejected) for gold, (chosen, rejected) in pairs]
    assert 0.2 < sum(against) / len(against) < 0.9


def test_labels_are_the_tastes() -> None:
    for question in QUESTIONS:
        answers = ANSWERS[question.gold["domain"]]
        for seed in range(20):
            pair = taste(question.gold, Random(seed))
            if pair:
                assert answers.taste(question.gold, pair[0]) > answers.taste(question.gold, pair[1])


@pytest.mark.downloads
def test_questions_are_of_the_wanted_skills_only() -> None:
    share = PairShare("chart", ("chart/line",), "dev", 0)
    drawn = [question for found in itertools.islice(questions(share, Random(0)), 4) for question in found]
    assert drawn
    assert {skill(question.gold) for question in drawn} == {"chart/line"}


def test_rows_of_different_clients_are_distinct_in_the_pool(tmp_path: Path) -> None:
    clients = CLIENTS[:2]
    for client in clients:
        share = PairShare(client.domains[0], client.skills, "client", 2)
        write_preferences(tmp_path / "clients" / client.name, [share], seed=client.name)
    rows = list(read_preferences(pool(tmp_path, clients)))
    assert [row.prompt.id.partition("/")[0] for row in rows] == [client.name for client in clients for _ in range(2)]
