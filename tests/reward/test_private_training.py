"""Training under differential privacy on tiny real models: options, claims, resumption, refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mor_core.datafiles import read_preferences
from mor_core.errors import Conflict, Invalid
from mor_core.wire import Card
from mor_reward import model_store
from mor_reward.backbones import TextConfig, build
from mor_reward.cli import app
from mor_reward.config import RewardSettings
from mor_reward.preference_trainer import PreferencePair, TrainingInterrupted, margins
from mor_reward.private_training.privacy_noise import PrivacyNoise
from mor_reward.private_training.privacy_units import privacy_units, unit_materials
from mor_reward.private_training.private_run import PrivateRun
from mor_reward.private_training.unit_trainer import UnitTrainer
from mor_reward.progress import NoProgress
from mor_reward.scoring_service import open_model
from mor_reward.splits import split_rows
from mor_reward.train_config import PrivateTraining, TrainConfig
from mor_reward.training_job import TrainingJob, evaluate, train
from typer.testing import CliRunner

from tests.reward import reward_kit as kit
from tests.reward.test_training import StopAt, interrupted


@pytest.fixture
def text_config(text_encoder: Path) -> TextConfig:
    return TextConfig(model=str(text_encoder), max_length=40, precision="float32")


@pytest.fixture
def styles(tmp_path: Path) -> Path:
    return kit.write_style_preferences(tmp_path / "data", 200)


def job(out: Path, data: Path, backbone: object, config: TrainConfig, **changes: object) -> TrainingJob:
    return TrainingJob(data, out, "m", "", backbone, config, **changes)  # type: ignore[arg-type]


def private(epsilon: float = 8.0, **changes: object) -> PrivateTraining:
    return PrivateTraining.model_validate({"epsilon": epsilon, **changes})


def test_a_private_head_learns_from_a_public_start_and_its_card_claims_it(
    trained: Path, colours: Path, tmp_path: Path
) -> None:
    data = kit.write_colour_preferences(tmp_path / "data", 150, seed=5)
    start = model_store.read_manifest(trained)
    config = TrainConfig(privacy=private(8))
    with pytest.raises(Invalid, match="300 of 300 pairs in --dp-public share a picture"):
        train(job(tmp_path / "model", data, start.backbone, config, start=trained, public=data), NoProgress())
    manifest = train(job(tmp_path / "model", data, start.backbone, config, start=trained, public=colours), NoProgress())

    unseen = kit.write_colour_preferences(tmp_path / "unseen", 40, seed=9)
    assert evaluate(unseen, tmp_path / "model")[1].accuracy > 0.9
    card: Card = open_model(RewardSettings(model_dir=tmp_path / "model")).card
    assert card.privacy is not None
    assert (card.privacy.epsilon, card.privacy.delta, card.privacy.unit) == (8, 1e-4, "picture")
    assert start.version in (card.privacy.public or "")
    assert "240 pairs that scale the features" in (card.privacy.public or "")
    assert manifest.version != start.version


@pytest.mark.parametrize(("unit", "shared"), [("picture", "question"), ("pair", "question"), ("person", "person")])
def test_public_pairs_that_belong_to_a_private_unit_are_refused(
    unit: str, shared: str, text_config: TextConfig, styles: Path, tmp_path: Path
) -> None:
    rows = [{**json.loads(line), "person": f"person {n}"} for n, line in enumerate(styles.read_text().splitlines())]
    data = kit.write_lines(tmp_path / "data.jsonl", rows)
    one, others = rows[7], kit.write_style_preferences(tmp_path / "others", 9, first=1000).read_text().splitlines()
    if shared == "question":  # about which the labels were exchanged
        taken = {**one, "person": "nobody", "chosen": one["rejected"], "rejected": one["chosen"]}
    else:
        taken = {**one, "prompt": "Another question"}
    public = kit.write_lines(tmp_path / "public.jsonl", [*map(json.loads, others), taken])
    config = TrainConfig(privacy=private(50, unit=unit))
    with pytest.raises(Invalid, match="1 of 10 pairs in --dp-public share"):
        train(job(tmp_path / "m", data, text_config, config, public=public), NoProgress())


def test_equal_private_trainings_differ(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    config = TrainConfig(privacy=private())
    first = train(job(tmp_path / "one", styles, text_config, config), NoProgress())
    second = train(job(tmp_path / "two", styles, text_config, config), NoProgress())
    assert first.version != second.version


def test_zero_epochs_release_noisy_figures_of_the_model_as_it_is(trained: Path, colours: Path, tmp_path: Path) -> None:
    start = model_store.read_manifest(trained)
    config = TrainConfig(epochs=0, privacy=private(8))
    with pytest.raises(Invalid, match="without privacy on these same rows"):
        train(job(tmp_path / "model", colours, start.backbone, config, start=trained), NoProgress())
    others = kit.write_colour_preferences(tmp_path / "others", 120, seed=1)
    manifest = train(job(tmp_path / "model", others, start.backbone, config, start=trained), NoProgress())
    assert manifest.training.steps == 0
    exact = evaluate(others, tmp_path / "model")[1].accuracy
    assert manifest.calibration.pair_accuracy_interval[0] < exact
    assert manifest.privacy is not None
    assert "0 steps" in (manifest.privacy.mechanism or "")


def test_dp_sgd_of_all_trained_parameters_resumes_and_claims_its_accountant(
    text_config: TextConfig, styles: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    config = TrainConfig(epochs=4, lr=3e-3, checkpoint_every=2, privacy=private(30, part="trained"))
    interrupted(job(tmp_path / "m", styles, text_config, config), StopAt("training", 3))
    manifest = train(job(tmp_path / "m", styles, text_config, config, resume=True), NoProgress())
    assert manifest.training.steps == 20
    assert manifest.privacy is not None
    assert "Opacus" in (manifest.privacy.accountant or "")
    assert manifest.privacy.mechanism == "DP-SGD over units, Poisson sampling; neighbours: one unit left out"


def test_gradients_by_unit_learn_what_a_batch_learns(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    """Train by units with hardly any noise: that of a usual ε hides what these parameters learn from 160 rows."""
    pairs = kit.pairs_of(styles)
    splits = split_rows([unit_materials(pair, "picture") for pair in pairs], 0.2, 0)
    config = TrainConfig(epochs=4, lr=3e-3, privacy=private(300, part="trained"))
    backbone = build(text_config, tmp_path, pretrained=True)
    trainer = UnitTrainer(
        backbone,
        pairs,
        splits,
        config,
        units=PrivateRun.of(config, pairs, splits).train,
        noise_multiplier=1e-9,
        clip=1e6,
        noise=PrivacyNoise(),
        fingerprint="",
        folder=tmp_path / "work",
        reporter=NoProgress(),
    )
    assert trainer.run().steps == 20
    assert (margins(backbone, pairs) > 0).mean() > 0.9


def test_a_checkpoint_without_privacy_does_not_become_private(
    text_config: TextConfig, styles: Path, tmp_path: Path
) -> None:
    pytest.importorskip("opacus")
    interrupted(job(tmp_path / "m", styles, text_config, TrainConfig(epochs=2)), StopAt("training", 1))
    config = TrainConfig(epochs=2, privacy=private(part="trained"))
    with pytest.raises(Conflict, match="belongs to other data, settings"):
        train(job(tmp_path / "m", styles, text_config, config, resume=True), NoProgress())


def test_a_checkpoint_of_other_persons_is_not_resumed(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    rows = [json.loads(line) for line in styles.read_text().splitlines()]
    config = TrainConfig(epochs=2, lr=3e-3, privacy=private(30, part="trained", unit="person"))
    kit.write_lines(styles, [row | {"person": number // 2} for number, row in enumerate(rows)])
    interrupted(job(tmp_path / "m", styles, text_config, config), StopAt("training", 1))
    kit.write_lines(styles, [row | {"person": number // 4} for number, row in enumerate(rows)])
    with pytest.raises(Conflict, match="belongs to other data, settings"):
        train(job(tmp_path / "m", styles, text_config, config, resume=True), NoProgress())


def test_an_interrupted_head_leaves_nothing(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    stop = StopAt("training", 1)
    with pytest.raises(TrainingInterrupted):
        train(job(tmp_path / "m", styles, text_config, TrainConfig(privacy=private())), stop, stop)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TrainConfig(mismatch=1, privacy=private()), "synthetic pair belongs to the units of two rows"),
        (TrainConfig(patience=5, privacy=private()), "early stopping"),
        (TrainConfig(lr=1e-3, privacy=private()), "--lr is for --dp-part trained"),
        (TrainConfig(epochs=3, privacy=private()), "leave it out"),
        (TrainConfig(privacy=private(delta=0.01)), "less than 1/200"),
        (TrainConfig(privacy=private(0.1)), "too small for 20 held-out units"),
        (TrainConfig(privacy=private(unit="person")), "200 of 200 rows name no person"),
    ],
)
def test_what_a_private_training_cannot_honour_is_refused(
    config: TrainConfig, message: str, text_config: TextConfig, styles: Path, tmp_path: Path
) -> None:
    with pytest.raises(Invalid, match=message):
        train(job(tmp_path / "m", styles, text_config, config), NoProgress())
    assert not (tmp_path / "m").exists()


def test_a_private_start_is_refused(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    config = TrainConfig(privacy=private())
    train(job(tmp_path / "one", styles, text_config, config), NoProgress())
    exported = model_store.read_manifest(tmp_path / "one").backbone
    with pytest.raises(Invalid, match="would add up"):
        train(job(tmp_path / "two", styles, exported, config, start=tmp_path / "one"), NoProgress())


def test_persons_of_a_column_are_the_units(text_config: TextConfig, styles: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in styles.read_text().splitlines()]
    for number, row in enumerate(rows):
        written = [f"José {number // 4}", f" José  {number // 4} ", f"Jose\u0301 {number // 4}"]
        row["patient"] = written[number % 3]
    kit.write_lines(styles, rows)
    read = [PreferencePair.of(row) for row in read_preferences(styles, "person=patient")]
    assert len(privacy_units(read, "person")) == 50, "blanks and typed accents make no other person"
    config = TrainConfig(privacy=private(20, unit="person"))
    named = job(tmp_path / "m", styles, text_config, config, columns="person=patient")
    manifest = train(named, NoProgress())
    assert manifest.privacy is not None
    assert (manifest.privacy.unit, manifest.privacy.delta) == ("person", 1e-3)


def test_the_command_needs_an_epsilon_for_its_other_options(styles: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(styles), "--out", str(tmp_path / "m"), "--backbone", "text", "--dp-unit", "pair"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "need --dp-epsilon" in " ".join(result.output.split())
