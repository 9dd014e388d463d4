"""Population, labels of its pairs, and the two objectives."""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path
from random import Random

import pytest
from mor_core.datafiles import read_preferences
from quality.material import PairShare, judge_of, questions, write_preferences
from quality.models import pool
from quality.objectives import brief, complete, prefer
from quality.population import DEFAULT, FOLDERS, Population, PopulationError, Start, find, load
from three_domains.chart import count_question, value_question
from three_domains.detail import make_questions as detail_questions
from three_domains.medical import make_questions as medical_questions
from three_domains.questions import Question

QUESTIONS: list[Question] = [
    *detail_questions({"top left": "bird", "bottom right": "coin"}, Random(0)),
    *medical_questions("axial", "frontal", "left", Random(0)),
    *(value_question(target, 42.0, "years") for target in ("tallest", "last", "start", "end")),
    count_question(4),
]


DEMONSTRATION = load(DEFAULT)
POPULATIONS = [load(file.parent) for file in sorted(FOLDERS.glob("*/__init__.py"))]


def test_every_question_has_a_known_skill_and_every_skill_has_a_question() -> None:
    known = {one for skills in DEMONSTRATION.skills.values() for one in skills}
    assert {DEMONSTRATION.skill(question.gold) for question in QUESTIONS} == known


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
def test_each_skill_has_clients_that_know_it_and_clients_that_do_not(population: Population) -> None:
    clients = population.clients
    for one in itertools.chain.from_iterable(population.skills.values()):
        experts = [client for client in clients if one in client.skills]
        assert 2 <= len(experts) < len(clients), one
    assert len(clients) >= 12
    assert len({client.architecture for client in clients}) >= 4


@pytest.mark.parametrize("population", POPULATIONS, ids=lambda population: population.name)
def test_options_name_the_given_encoders(population: Population) -> None:
    for client in population.clients:
        found = population.options(client.architecture, client.epochs, Start(Path("/of/base"), Path("/of/parts")))
        assert any(option.startswith("/of/") for option in found)
        assert not any("{" in option for option in found)


def test_another_process_gets_the_population_of_the_same_folder() -> None:
    assert pickle.loads(pickle.dumps(DEMONSTRATION)) is DEMONSTRATION
    assert find("demonstration") == DEFAULT


def dropped_in(folder: Path, **changes: str) -> Path:
    """Write a population that takes all from the demonstration's, apart from ``changes``."""
    names = ("SKILLS", "CLIENTS", "ARCHITECTURES", "REFERENCES", "ANSWERS", "skill", "picture_maker", "averaged")
    lines = [f"from quality.populations.demonstration import {name}" for name in names if name not in changes]
    (folder / "__init__.py").write_text("\n".join([*lines, *changes.values(), "from .start import prepare"]))
    (folder / "start.py").write_text("from quality.populations.demonstration import prepare\n")
    return folder


def test_a_folder_elsewhere_is_a_population(tmp_path: Path) -> None:
    found = load(dropped_in(tmp_path))
    assert found.clients == DEMONSTRATION.clients
    assert pickle.loads(pickle.dumps(found)) == found
    write_preferences(found, tmp_path / "made", [PairShare("chart", ("chart/line",), "dev", 0)], seed="x")
    assert (tmp_path / "made/prefs.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"skill": "", "ANSWERS": ""}, "does not define ANSWERS, skill; a population defines SKILLS, CLIENTS"),
        ({"SKILLS": "SKILLS = {'detail': ('list',), 'chart': ()}"}, "sub-skill list of domain detail is not named"),
        ({"SKILLS": "SKILLS = {'sound': ('sound/pitch',)}"}, "ANSWERS has no domain sound"),
        ({"SKILLS": "SKILLS = {'sound': ('sound/pitch',)}"}, "fewer than two domains"),
        ({"ARCHITECTURES": "ARCHITECTURES = {'text': ''}"}, "has the unknown architecture dinov2"),
    ],
)
def test_an_error_names_what_a_folder_lacks(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(PopulationError, match=reason):
        load(dropped_in(tmp_path, **changes))


def test_a_folder_without_a_package_is_no_population(tmp_path: Path) -> None:
    with pytest.raises(PopulationError, match=r"has no __init__.py; --population takes .* demonstration"):
        load(tmp_path / "absent")


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_the_objectives_agree_on_truth_and_differ_in_length(question: Question) -> None:
    answers = DEMONSTRATION.answers[question.gold["domain"]]
    right, wrong = answers.right(question.gold, Random(1)), answers.wrong(question.gold, Random(1))
    for objective in (complete, brief):
        assert objective(answers, question.gold, right) > objective(answers, question.gold, wrong) - 0.75
    pairs = [pair for seed in range(60) if (pair := prefer("complete", answers, question.gold, Random(seed)))]
    assert pairs
    assert all(
        complete(answers, question.gold, chosen) > complete(answers, question.gold, rejected)
        for chosen, rejected in pairs
    )


def test_the_objectives_disagree_on_some_pairs() -> None:
    pairs = [
        (DEMONSTRATION.answers[question.gold["domain"]], question.gold, pair)
        for question in QUESTIONS
        for seed in range(20)
        if (pair := judge_of(DEMONSTRATION, "complete")(question.gold, Random(seed)))
    ]
    against = [brief(answers, gold, first) < brief(answers, gold, second) for answers, gold, (first, second) in pairs]
    assert 0.2 < sum(against) / len(against) < 0.9


def test_labels_are_the_tastes() -> None:
    for question in QUESTIONS:
        answers = DEMONSTRATION.answers[question.gold["domain"]]
        for seed in range(20):
            pair = judge_of(DEMONSTRATION, None)(question.gold, Random(seed))
            if pair:
                assert answers.taste(question.gold, pair[0]) > answers.taste(question.gold, pair[1])


@pytest.mark.downloads
def test_questions_are_of_the_wanted_skills_only() -> None:
    share = PairShare("chart", ("chart/line",), "dev", 0)
    drawn = [
        question for found in itertools.islice(questions(DEMONSTRATION, share, Random(0)), 4) for question in found
    ]
    assert drawn
    assert {DEMONSTRATION.skill(question.gold) for question in drawn} == {"chart/line"}


def test_rows_of_different_clients_are_distinct_in_the_pool(tmp_path: Path) -> None:
    clients = DEMONSTRATION.clients[:2]
    for client in clients:
        share = PairShare(client.domains[0], client.skills, "client", 2)
        write_preferences(DEMONSTRATION, tmp_path / "clients" / client.name, [share], seed=client.name)
    rows = list(read_preferences(pool(tmp_path, clients)))
    assert [row.prompt.id.partition("/")[0] for row in rows] == [client.name for client in clients for _ in range(2)]
