"""Questions of the experiment and their tables, on scores with known truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mor_router.mathematics.anchor_proposal import ProposalWeights
from quality import plots, tables
from quality.evidence import OTHERS, ExperimentData
from quality.group_scores import AnchorPairs, GroupScores, ResponseFeatures
from quality.questions import clients, labels, objectives, onboarding, policies, ranking, scaling, variants
from quality.questions.labels import chosen_in_turn, drawn_in_turn
from quality.supervised import Tuned

from tests.bench import synthetic

SKILLS = ("detail/list", "medical/side", "chart/bar")


def groups(count: int, seed: int, size: int = 2) -> GroupScores:
    """Make the synthetic population under the names of three of the experiment's skills."""
    made = synthetic.groups(count * 4 // 3, seed, size)
    known = made.take(np.array([skill != synthetic.SKILLS[3] for skill in made.skills]))
    names = dict(zip(synthetic.SKILLS, SKILLS, strict=False))
    others = {name: known.scores.mean(axis=1) for name in OTHERS}
    random = np.random.default_rng(seed)
    answers = ResponseFeatures(random.normal(size=(*known.scores[:, 0].shape, 4)), 3 + (known.scores[:, 0] > 0))
    return GroupScores(known.inputs, known.scores, tuple(names[skill] for skill in known.skills), others, answers)


@pytest.fixture(scope="module")
def evidence() -> ExperimentData:
    sampled = groups(30, seed=5, size=16)
    gold = np.tile(1.0 - np.arange(16), (len(sampled), 1))
    styled, held_out = groups(90, seed=6), groups(150, seed=7)
    return ExperimentData(
        domains=tuple(dict.fromkeys(skill.partition("/")[0] for skill in SKILLS)),
        clients=tuple("abcdef"),
        pool=AnchorPairs(groups(300, seed=1)),
        held_out=groups(300, seed=2),
        pictures=tuple(str(n // 2) for n in range(300)),
        sampled=sampled,
        truth={"correct": (gold > -8).astype(float), "taste": gold},
        supervised=Tuned(kl=0.5, correct=0.6),
        styled=AnchorPairs(styled),
        styled_held_out=held_out,
        agrees=(np.arange(len(styled)) % 3 == 0, np.arange(len(held_out)) % 3 == 0),
        wire={"from the client, a group": 200.0},
        draws=2,
        executor=None,
    )


def test_every_variant_has_figures_beside_those_of_mor(evidence: ExperimentData) -> None:
    found = variants(evidence)
    assert next(iter(found)) == "MoR" and len(found) == 8
    assert all(50 < level <= 100 for row in found.values() for levels in row.values() for level in levels.values())
    assert tables.variants(found).count("\n") == 9


def test_each_client_is_best_at_what_it_knows(evidence: ExperimentData) -> None:
    found = clients(evidence)
    for client, skill in zip("abc", SKILLS, strict=True):
        assert max(found, key=lambda name: found[name][skill]) == client


def test_the_ranking_names_every_arm_once_and_puts_mor_before_one_client_for_all(evidence: ExperimentData) -> None:
    found = ranking(evidence)["64"]
    assert set(OTHERS.values()) < set(found)
    assert found["MoR"]["behind"]["mean"] == 0
    assert found["best single client"]["behind"]["low"] > 0
    assert tables.standings(found).count("\n") == len(found) + 1


def test_a_better_reward_makes_a_better_policy_and_none_beats_the_truth(
    evidence: ExperimentData, tmp_path: Path
) -> None:
    found = policies(evidence)
    for part in found["by anchors"].values():
        at = {arm: dict(zip(curve["kl"], curve["taste"], strict=True)) for arm, curve in part["curves"].items()}
        assert at["gold itself"][1.0] > at["MoR"][1.0] > at["best single client"][1.0]
    assert "gains" in tables.policies(found)
    counts = {"MoR": {str(count): [70.0, 80.0] for count in (16, 64, 256)}}
    plots.draw({"ranking": ranking(evidence), "anchor_counts": counts, "policies": found}, tmp_path, "quality-test")
    assert (tmp_path / "quality-test-policies.svg").stat().st_size > 1000


def test_the_wrong_objective_reverses_the_pairs_of_disagreement(evidence: ExperimentData) -> None:
    found = objectives(evidence)
    assert list(found) == ["64", "90"]
    for part in found.values():
        assert part["fitted complete, evaluated on complete"] > part["fitted complete, evaluated on brief"] + 10
        assert part["cost of the gate fitted complete, evaluated on brief, points"]["low"] > 10
        assert part["fitted complete, evaluated on complete"] > part["fitted both, evaluated on complete"]
    assert tables.objectives(found).count("\n") == len(found["64"]) + 1


def test_onboarding_is_nearly_as_accurate_as_a_refit(evidence: ExperimentData) -> None:
    found = onboarding(evidence)
    assert found["without"]["own"] + 5 < found["joined"]["own"]
    assert abs(found["joined"]["all"] - found["refit"]["all"]) < 2
    assert tables.onboarding(found).count("\n") == 4


def test_calls_do_not_grow_with_the_number_of_clients(evidence: ExperimentData) -> None:
    found = scaling(evidence, (6, 24))
    assert [row["calls"] for row in found.values()] == [6, 8]
    assert all(row["called"] > row["all"] - 3 for row in found.values())
    assert tables.scaling(found).count("\n") == 3


def test_labels_are_counted_alike_and_no_anchor_is_labelled_twice(evidence: ExperimentData) -> None:
    counts = (32, 48)
    found = labels(evidence, counts)
    assert set(found) == {"drawn", "chosen", "chosen by information alone"}
    for row in found.values():
        assert list(row) == ["32", "48"]
        assert np.mean(row["48"]["held-out pairs"]) > 70
    assert found["drawn"]["32"] != found["chosen"]["32"]
    rows = chosen_in_turn(evidence.pool, evidence.domains, 0, counts, ProposalWeights())
    assert len(set(rows.tolist())) == len(rows) == 48
    assert set(rows[:16]) == set(drawn_in_turn(evidence.pool, evidence.domains, 0, counts)[:16])
    assert tables.labels(found).count("\n") == 4
