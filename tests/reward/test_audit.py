"""Privacy audit: it finds a planted memoriser and no other model, and its figures reach the card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mor_core.errors import Conflict, Invalid
from mor_core.intervals import exact_lower
from mor_reward.audit import roc_curve
from mor_reward.audit.audit_job import AuditJob, audit
from mor_reward.audit.audit_words import sentences
from mor_reward.audit.membership import MarginSet
from mor_reward.audit.shadow_models import AuditInterrupted
from mor_reward.audit_record import AUDIT, read_record
from mor_reward.backbones import DualEncoderConfig, TextConfig, VlmConfig
from mor_reward.cli import app
from mor_reward.config import RewardSettings
from mor_reward.model_store import read_manifest
from mor_reward.progress import NoProgress
from mor_reward.scoring_service import open_model
from mor_reward.train_config import PrivateTraining, TrainConfig
from mor_reward.training_job import TrainingJob, train
from typer.testing import CliRunner

from tests.reward import planted
from tests.reward import reward_kit as kit


@pytest.fixture(scope="module")
def random_preferences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted.write_random_preferences(tmp_path_factory.mktemp("random") / "data", 24)


@pytest.fixture(scope="module")
def memoriser(
    tmp_path_factory: pytest.TempPathFactory, random_preferences: Path, dual_config: DualEncoderConfig
) -> Path:
    torch.set_num_threads(1)  # before the fixture of each test does
    folder = tmp_path_factory.mktemp("memoriser") / "model"
    config = dual_config.model_copy(update={"width": 64, "dropout": 0.0})
    recipe = TrainConfig(epochs=30, lr=4e-3, patience=2, weight_decay=0, heldout_fraction=0.5, batch_size=12)
    planted.plant_model(random_preferences, random_preferences, folder, config, recipe)
    return folder


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.mark.timeout(900)  # imports, a training and two shadow models: half a minute of one core
def test_a_planted_memoriser_is_found(memoriser: Path, random_preferences: Path) -> None:
    found = audit(AuditJob(memoriser, random_preferences, shadows=2), NoProgress())
    picture, pair = (next(a for a in found.record.statement.attacks if a.unit == unit) for unit in ("picture", "pair"))
    assert picture.auc > 0.9
    assert pair.auc_interval[0] > 0.6
    assert found.record.statement.epsilon_lower is not None
    assert found.record.statement.epsilon_lower > 0.5
    labels = found.record.labels
    assert labels.told > 0.85
    assert labels.memorised_interval is not None
    assert labels.memorised_interval[0] > 0
    risks = [pair.above for pair in found.at_risk]
    assert risks == sorted(risks, reverse=True)
    assert len(risks) == picture.members * 6


@pytest.mark.timeout(900)
def test_unseen_pairs_narrow_the_interval(memoriser: Path, random_preferences: Path, tmp_path: Path) -> None:
    unseen = planted.write_random_preferences(tmp_path / "unseen", 60, seed=6)
    few = audit(AuditJob(memoriser, random_preferences, shadows=0), NoProgress())
    many = audit(AuditJob(memoriser, random_preferences, shadows=0, unseen=unseen), NoProgress())
    before, after = ({attack.unit: attack for attack in found.record.statement.attacks} for found in (few, many))
    assert [(each["picture"].members, each["picture"].non_members) for each in (before, after)] == [(12, 12), (12, 72)]
    assert after["picture"].auc > 0.9
    width = [each["pair"].auc_interval[1] - each["pair"].auc_interval[0] for each in (before, after)]
    assert width[1] < width[0]
    assert {pair.row for pair in many.at_risk} == {pair.row for pair in few.at_risk}
    assert many.unlike is None


def test_unseen_pairs_must_be_about_other_pictures(copy: Path, colours: Path) -> None:
    with pytest.raises(Conflict, match="240 of the 240 rows of --unseen are about a picture of --data"):
        audit(AuditJob(copy, colours, shadows=0, unseen=colours), NoProgress())
    assert not (copy / AUDIT).exists()


@pytest.mark.timeout(900)
def test_unseen_pairs_of_another_kind_are_noticed(copy: Path, colours: Path, tmp_path: Path) -> None:
    unseen = planted.write_random_preferences(tmp_path / "unseen", 40)
    found = audit(AuditJob(copy, colours, shadows=2, unseen=unseen), NoProgress())
    assert found.unlike is not None
    assert found.unlike > 0.6
    assert "they are of different kinds" in " ".join(sentences(found))


@pytest.mark.timeout(900)
def test_a_model_that_never_saw_the_data_is_not_found(dual_config: DualEncoderConfig, tmp_path: Path) -> None:
    data = planted.write_random_preferences(tmp_path / "data", 60)
    other = planted.write_random_preferences(tmp_path / "other", 60, seed=6)
    recipe = TrainConfig(epochs=3, lr=3e-3, heldout_fraction=0.5)
    planted.plant_model(data, other, tmp_path / "m", dual_config, recipe)
    found = audit(AuditJob(tmp_path / "m", data, shadows=2), NoProgress())
    for attack in found.record.attacks:
        assert attack.auc_interval[0] <= 0.5 <= attack.auc_interval[1]
    assert found.record.statement.epsilon_lower == 0


def test_an_untrained_vlm_scores_as_its_checkpoint_and_is_not_found(tiny_vlm: Path, tmp_path: Path) -> None:
    data = kit.write_colour_preferences(tmp_path / "data", 24)
    config = VlmConfig(model=str(tiny_vlm), lora_rank=4, likelihood=0.3, precision="float32")
    recipe = TrainConfig(epochs=1, lr=1e-9, heldout_fraction=0.5)
    train(TrainingJob(data, tmp_path / "m", "m", "", config, recipe), NoProgress())
    assert read_manifest(tmp_path / "m").training.lora_rank == 4

    without = audit(AuditJob(tmp_path / "m", data, shadows=2), NoProgress())
    assert "--base" in (without.without_shadows or "")
    assert {attack.attack for attack in without.record.attacks} == {"margin"}
    found = audit(AuditJob(tmp_path / "m", data, shadows=2, base=str(tiny_vlm)), NoProgress())
    names = {attack.attack for attack in found.record.attacks}
    assert {"margin", "reference difference, untrained", "reference difference, shadows"} <= names
    assert found.record.shadows == 2
    pictures = next(attack for attack in found.record.statement.attacks if attack.unit == "picture")
    assert pictures.auc_interval[0] <= 0.5


def test_shadows_of_a_model_that_started_from_another_need_that_one(text_encoder: Path, tmp_path: Path) -> None:
    text_config = TextConfig(model=str(text_encoder), max_length=40, precision="float32")
    public = kit.write_style_preferences(tmp_path / "public", 60, first=1000)
    data = kit.write_style_preferences(tmp_path / "data", 160)
    start = tmp_path / "start"
    train(TrainingJob(public, start, "start", "", text_config, TrainConfig(epochs=1, lr=3e-3)), NoProgress())
    recipe = TrainConfig(privacy=PrivateTraining(epsilon=50))
    job = TrainingJob(data, tmp_path / "m", "m", "", text_config, recipe, start=start, public=public)
    version = train(job, NoProgress()).training.start
    assert version == read_manifest(start).version

    scaled = "the public preferences that scaled its head are needed; give them with --dp-public"
    assert audit(AuditJob(tmp_path / "m", data, shadows=2), NoProgress()).without_shadows == scaled
    other = audit(AuditJob(tmp_path / "m", data, shadows=2, public=public), NoProgress()).without_shadows
    assert other == f"it started from another reward model, of version {version}; give its folder with --base"
    with pytest.raises(Conflict, match="is not what scaled model 'm'"):
        audit(AuditJob(tmp_path / "m", data, shadows=2, public=data), NoProgress())
    found = audit(AuditJob(tmp_path / "m", data, shadows=2, base=str(start), public=public), NoProgress())
    assert found.record.shadows == 2


def test_unseen_pairs_do_not_change_the_recipe_of_a_private_model(text_encoder: Path, tmp_path: Path) -> None:
    """Its δ fits the number of its own units; with the unseen ones beside them it would be refused as too large."""
    text_config = TextConfig(model=str(text_encoder), max_length=40, precision="float32")
    data = kit.write_style_preferences(tmp_path / "data", 80)
    unseen = kit.write_style_preferences(tmp_path / "unseen", 40, first=1000)
    recipe = TrainConfig(privacy=PrivateTraining(epsilon=50, delta=0.012))
    train(TrainingJob(data, tmp_path / "m", "m", "", text_config, recipe), NoProgress())
    job = AuditJob(tmp_path / "m", data, shadows=2, base=str(text_encoder), unseen=unseen)
    assert audit(job, NoProgress()).record.shadows == 2


def test_the_card_shows_the_audit_of_its_version_only(copy: Path, colours: Path, settings: RewardSettings) -> None:
    served = settings.model_copy(update={"model_dir": copy})
    assert open_model(served).card.audit is None
    found = audit(AuditJob(copy, colours, shadows=0), NoProgress())
    card = open_model(served).card
    assert card.audit == found.record.statement
    assert card.audit.model_version == card.model.version
    assert {attack.unit for attack in card.audit.attacks} == {"pair", "picture"}
    text = (copy / AUDIT).read_text()
    assert all(pair.id not in text for pair in found.at_risk)

    record = json.loads(text)
    record["statement"]["model_version"] = "another"
    record["field_of_a_newer_release"] = 1
    (copy / AUDIT).write_text(json.dumps(record))
    assert read_record(copy, "another") is not None
    assert open_model(served).card.audit is None
    (copy / AUDIT).write_text("{")
    with pytest.raises(Invalid, match="run 'mor-reward audit' again"):
        open_model(served)


def test_other_data_is_refused(copy: Path, colours: Path, tmp_path: Path) -> None:
    lines = colours.read_text().splitlines()
    row = json.loads(lines[3])
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    shutil.copytree(colours.parent, tmp_path / "data")
    flipped = kit.write_lines(
        tmp_path / "data" / "prefs.jsonl", [*map(json.loads, lines[:3]), row, *map(json.loads, lines[4:])]
    )
    with pytest.raises(Conflict, match="are not the 240 that model 'colours' was trained on"):
        audit(AuditJob(copy, flipped, shadows=0), NoProgress())
    manifest = json.loads((copy / "reward.json").read_text())
    del manifest["training"]["data"]
    (copy / "reward.json").write_text(json.dumps(manifest))
    with pytest.raises(Invalid, match="has no record of its data"):
        audit(AuditJob(copy, colours, shadows=0), NoProgress())
    assert not (copy / AUDIT).exists()


def test_an_interrupted_audit_writes_nothing(copy: Path, colours: Path) -> None:
    class Stop(NoProgress):
        stopped = False

        def advance(self, done: int, note: str = "") -> None:
            self.stopped = self.stopped or note.startswith("training 3")

    stop = Stop()
    with pytest.raises(AuditInterrupted, match="stopped in shadow model 1 of 2; start again"):
        audit(AuditJob(copy, colours, shadows=2), stop, lambda: stop.stopped)
    assert not (copy / AUDIT).exists()


def test_the_command_names_pairs_at_risk_and_says_what_a_router_learns(copy: Path, colours: Path) -> None:
    run = ["audit", "--model", str(copy), "--data", str(colours), "--shadows", "0"]
    result = CliRunner().invoke(app, [*run, "--show", "2"])
    assert result.exit_code == 0, result.output
    assert "Was this picture trained on? A router that has the picture, its questions and both answers" in result.output
    assert "more like a trained pair than" in result.output
    told = CliRunner().invoke(app, [*run, "--json", "--show", "3"])
    document = json.loads(told.stdout)
    assert [set(pair) for pair in document["at_risk"]] == [{"row", "id", "above"}] * 3
    assert document["statement"]["attacks"][0]["unit"] == "pair"
    one = CliRunner().invoke(app, [*run[:-1], "1"])
    assert one.exit_code == 1
    assert "--shadows 1: each pair needs" in one.output


def test_auc_and_true_positives_are_those_of_a_count() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=300) + np.repeat([1.0, 0.0], 150), 1)
    member = np.repeat([True, False], 150)
    pairs = [(a > b) + (a == b) / 2 for a in scores[member] for b in scores[~member]]
    assert roc_curve.auc(scores, member) == pytest.approx(np.mean(pairs))
    threshold = sorted(scores[~member])[-2]
    assert roc_curve.true_positives(scores, member) == pytest.approx((scores[member] > threshold).mean())
    low, high = roc_curve.auc_interval(scores, member, np.arange(300), 0)
    assert low < roc_curve.auc(scores, member) < high
    assert high - low == pytest.approx(4 * 0.027, abs=0.02)  # Hanley and McNeil 1982 for this size


def test_pairs_of_one_picture_widen_the_interval() -> None:
    rng = np.random.default_rng(1)
    scores = np.repeat(rng.normal(size=60), 5)
    member = np.repeat(np.arange(60) < 30, 5)
    alone = roc_curve.auc_interval(scores, member, np.arange(300), 0)
    together = roc_curve.auc_interval(scores, member, np.repeat(np.arange(60), 5), 0)
    assert together[1] - together[0] > 1.5 * (alone[1] - alone[0])


@pytest.mark.parametrize(("members", "others"), [(1, 1), (2, 2), (4, 1), (8, 2), (12, 3), (5, 5)])
def test_few_pictures_prove_nothing_against_a_model_trained_on_nothing(members: int, others: int) -> None:
    rng, member = np.random.default_rng(4), np.arange(members + others) < members
    for steps in (1000, 1):  # continuous margins, and labels that the model tells or not
        drawn = np.floor(rng.random((100, len(member))) * (steps + 1))
        numbers = np.arange(len(member))
        intervals = [roc_curve.auc_interval(scores, member, numbers, seed) for seed, scores in enumerate(drawn)]
        assert sum(not low <= 0.5 <= high for low, high in intervals) <= 8  # 5 on average at most


def test_persons_that_a_training_hid_are_audited_as_persons(text_encoder: Path, tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path / "data", 320)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    kit.write_lines(data, [row | {"patient": f"p{number // 4}"} for number, row in enumerate(rows)])
    config = TextConfig(model=str(text_encoder), max_length=40, precision="float32")
    recipe = TrainConfig(privacy=PrivateTraining(epsilon=50, unit="person"))
    train(TrainingJob(data, tmp_path / "m", "m", "", config, recipe, columns="person=patient"), NoProgress())
    with pytest.raises(Conflict, match="the same --map"):  # without persons, other rows would count as trained on
        audit(AuditJob(tmp_path / "m", data, shadows=0, columns="ignore=patient"), NoProgress())
    found = audit(
        AuditJob(tmp_path / "m", data, shadows=2, base=str(text_encoder), columns="person=patient"), NoProgress()
    )
    by_unit = {attack.unit: attack for attack in found.record.statement.attacks}
    assert 4 * by_unit["person"].members == by_unit["picture"].members == by_unit["pair"].members
    assert (by_unit["person"].members, by_unit["person"].non_members) == (64, 16)
    assert found.record.statement.epsilon_lower == 0
    assert any("Was this person trained on?" in sentence for sentence in sentences(found))


def test_the_bound_of_epsilon_holds_for_randomised_response() -> None:
    """A mechanism that reports membership truthfully with probability e/(1 + e) is exactly 1-private."""
    rng = np.random.default_rng(2)
    member = np.repeat([True, False], 500)
    bounds = []
    for seed in range(40):
        truthful = rng.random(1000) < np.e / (1 + np.e)
        bounds.append(roc_curve.epsilon_lower(np.where(truthful, member, ~member).astype(float), member, seed))
    assert sum(bound > 1 for bound in bounds) <= 4  # 5 % of 40 on average at most
    assert np.mean(bounds) > 0.6
    assert roc_curve.epsilon_lower(member.astype(float), member, 0) > 4


def test_the_exact_limit_is_clopper_and_pearsons() -> None:
    assert exact_lower(10, 10) == pytest.approx(0.05 ** (1 / 10))
    assert exact_lower(0, 10) == 0
    assert exact_lower(8, 10, 0.025) == pytest.approx(0.4439045, abs=1e-6)


@pytest.mark.parametrize(
    ("shadows", "spread", "tried"), [(2, 1.0, False), (3, 1.0, False), (4, 1.0, True), (8, 0.0, False)]
)
def test_an_attack_that_cannot_be_made_is_not_reported_as_failed(shadows: int, spread: float, tried: bool) -> None:
    """Its numbers would all be equal: an AUC of exactly 0.5, which could be the largest of all attacks'."""
    random = np.random.default_rng(0)
    order = random.permuted(np.tile(np.arange(shadows), (30, 1)), axis=1).T
    included = order < shadows // 2
    margins = random.normal(0, 1, 30) + spread * random.normal(0, 1, (shadows, 30))
    found = dict(MarginSet(random.normal(0, 1, 30), None, margins, included).attacks())
    assert ("likelihood ratio, shadows" in found) == tried
    assert all(np.ptp(numbers) > 0 for numbers in found.values())


def test_the_likelihood_ratio_beats_the_margin_where_pairs_differ() -> None:
    """Margins of easy and hard pairs hide membership from a threshold; each pair's own shadows reveal it."""
    rng = np.random.default_rng(3)
    ease, member = rng.normal(size=400) * 3, rng.random(400) < 0.5
    included = np.array([rng.permutation(16) < 8 for _ in range(400)]).T
    noise = rng.normal(size=(17, 400)) * 0.5
    set_ = MarginSet(ease + member + noise[0], None, ease + included + noise[1:], included)
    areas = {name: roc_curve.auc(numbers, member) for name, numbers in set_.attacks()}
    assert areas["margin"] < 0.65
    assert areas["likelihood ratio, shadows"] > 0.85
    assert areas["reference difference, shadows"] > 0.85
