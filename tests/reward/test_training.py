"""Training on tiny real models: learning, saving, interruption."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mor_core.errors import Conflict, DataFileError, Invalid
from mor_reward import model_store
from mor_reward.backbones import AnyConfig, DualEncoderConfig, TextConfig, VlmConfig
from mor_reward.cli import app
from mor_reward.preference_trainer import TrainingInterrupted, margins
from mor_reward.progress import NoProgress
from mor_reward.train_config import TrainConfig
from mor_reward.training_job import TrainingJob, evaluate, train
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.reward import reward_kit as kit

CONFIGURATIONS = ["dual-encoder", "dual-encoder-trained", "text", "vlm", "vlm-lora", "vlm-likelihood"]


@pytest.fixture
def configuration(
    request: pytest.FixtureRequest, tiny_vlm: Path, text_encoder: Path, dual_config: DualEncoderConfig
) -> AnyConfig:
    match request.param:
        case "dual-encoder":
            return dual_config
        case "dual-encoder-trained":
            return dual_config.model_copy(update={"freeze": False})
        case "text":
            return TextConfig(model=str(text_encoder), max_length=40, precision="float32")
        case "vlm":
            return VlmConfig(model=str(tiny_vlm), precision="float32")
        case "vlm-likelihood":
            return VlmConfig(model=str(tiny_vlm), likelihood=0.1, precision="float32")
        case _:
            return VlmConfig(model=str(tiny_vlm), lora_rank=4, precision="float32")


@pytest.mark.parametrize(
    ("configuration", "train_config"),
    [
        ("dual-encoder", TrainConfig(epochs=12, lr=3e-3, mismatch=2)),
        ("text", TrainConfig(epochs=6, lr=2e-3)),
        ("vlm", TrainConfig(epochs=6, lr=3e-3)),
        ("vlm-lora", TrainConfig(epochs=6, lr=1e-2)),
    ],
    indirect=["configuration"],
)
def test_each_backbone_learns_an_easy_preference(
    configuration: AnyConfig, train_config: TrainConfig, tmp_path: Path
) -> None:
    """Train the dual encoder on colours in pictures, the others on a style in the text."""
    if configuration.kind == "dual-encoder":
        data = kit.write_colour_preferences(tmp_path / "data", 120)
        unseen = kit.write_colour_preferences(tmp_path / "unseen", 60, seed=7)
    else:
        data = kit.write_style_preferences(tmp_path / "data", 200)
        unseen = data
    manifest = train(TrainingJob(data, tmp_path / "model", "easy", "", configuration, train_config), NoProgress())

    assert manifest.calibration.pair_accuracy > 0.9
    assert manifest.calibration.pair_accuracy_interval[0] < manifest.calibration.pair_accuracy
    _, report = evaluate(unseen, tmp_path / "model")
    assert report.accuracy > 0.9
    assert not (tmp_path / "model.training").exists()


@pytest.mark.parametrize("configuration", CONFIGURATIONS, indirect=True)
def test_a_saved_model_scores_like_the_trained_one(configuration: AnyConfig, tmp_path: Path) -> None:
    data = kit.write_colour_preferences(tmp_path / "data", 24)
    train_config = TrainConfig(epochs=1, batch_size=16, lr=1e-3, heldout_fraction=0.3)
    manifest = train(TrainingJob(data, tmp_path / "model", "m", "", configuration, train_config), NoProgress())
    moved = (tmp_path / "model").rename(tmp_path / "elsewhere")

    again, backbone = model_store.load(moved)
    assert again == manifest
    rows = kit.pairs_of(data)
    first = margins(backbone, rows)
    shifted = margins(model_store.load(moved)[1], list(reversed(rows)))[::-1]
    assert first == pytest.approx(shifted, abs=1e-5)
    assert abs(first).max() > 0
    for path in moved.rglob("*.json"):
        assert str(Path(configuration.model_dump().get("model") or "/nowhere")) not in path.read_text()


@pytest.mark.parametrize("configuration", ["dual-encoder", "vlm-lora", "text"], indirect=True)
def test_a_resumed_training_ends_bit_equal_to_an_uninterrupted_one(configuration: AnyConfig, tmp_path: Path) -> None:
    data = kit.write_colour_preferences(tmp_path / "data", 24)
    train_config = TrainConfig(epochs=2, batch_size=8, lr=1e-3, mismatch=1, heldout_fraction=0.3, checkpoint_every=2)

    def job(name: str, resume: bool = False) -> TrainingJob:
        return TrainingJob(data, tmp_path / name, "m", "", configuration, train_config, resume)

    whole = train(job("whole"), NoProgress())
    interrupted(job("parts"), StopAt("training", 3))
    assert not (tmp_path / "parts").exists()
    with pytest.raises(Conflict, match="--resume"):
        train(job("parts"), NoProgress())
    parts = train(job("parts", resume=True), NoProgress())

    assert parts.version == whole.version
    one, other = (load_file(tmp_path / name / model_store.WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "parts.training").exists()


class StopAt(NoProgress):
    """Reporter that requests a stop once ``done`` steps of a phase are finished."""

    def __init__(self, phase: str, done: int) -> None:
        self._wanted, self._done = phase, done
        self._phase = ""
        self._requested = False

    def phase(self, name: str, total: int | None) -> None:
        self._phase = name

    def advance(self, done: int, note: str = "") -> None:
        self._requested = self._requested or (self._phase == self._wanted and done >= self._done)

    def __call__(self) -> bool:
        return self._requested


def interrupted(job: TrainingJob, stop: StopAt) -> None:
    with pytest.raises(TrainingInterrupted):
        train(job, stop, stop)


def test_an_interrupt_before_the_first_step_leaves_nothing(
    dual_config: DualEncoderConfig, colours: Path, tmp_path: Path
) -> None:
    interrupted(TrainingJob(colours, tmp_path / "m", "m", "", dual_config, TrainConfig()), StopAt("encoding", 1))
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_resumes_only_its_own_job(dual_config: DualEncoderConfig, colours: Path, tmp_path: Path) -> None:
    def job(seed: int, resume: bool) -> TrainingJob:
        return TrainingJob(colours, tmp_path / "m", "m", "", dual_config, TrainConfig(epochs=1, seed=seed), resume)

    with pytest.raises(Invalid, match="start without --resume"):
        train(job(0, resume=True), NoProgress())
    interrupted(job(0, resume=False), StopAt("training", 1))
    with pytest.raises(Conflict, match="belongs to other data, settings"):
        train(job(1, resume=True), NoProgress())


def test_the_temperature_makes_held_out_scores_calibrated_logits(trained: Path, tmp_path: Path) -> None:
    unseen = kit.write_colour_preferences(tmp_path, 100, seed=3)
    manifest, report = evaluate(unseen, trained)
    assert report.pairs == 200
    assert report.ece < 0.1
    assert manifest.calibration.temperature > 0


def test_swapped_labels_are_suspected(trained: Path, tmp_path: Path) -> None:
    right = kit.write_colour_preferences(tmp_path, 20, seed=3)
    command = ["evaluate", "--model", str(trained), "--data"]
    assert "are the labels" not in CliRunner().invoke(app, [*command, str(right)]).output
    names = {"chosen": "rejected", "rejected": "chosen"}
    rows = [json.loads(line) for line in right.read_text().splitlines()]
    swapped = kit.write_lines(
        tmp_path / "swapped.jsonl", [{names.get(name, name): value for name, value in row.items()} for row in rows]
    )
    warned = CliRunner().invoke(app, [*command, str(swapped)])
    assert warned.exit_code == 0
    assert "are the labels swapped?" in " ".join(warned.output.split())


def test_zero_epochs_calibrate_only(dual_config: DualEncoderConfig, colours: Path, tmp_path: Path) -> None:
    manifest = train(TrainingJob(colours, tmp_path / "m", "m", "", dual_config, TrainConfig(epochs=0)), NoProgress())
    assert manifest.training.steps == 0
    assert manifest.calibration.pair_accuracy == 0.5


# --- invalid input ------------------------------------------------------------------------------------------------


def test_a_malformed_line_is_named_with_its_cure(dual_config: DualEncoderConfig, tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path, 5)
    data.write_text(data.read_text() + '{"prompt": "x", "chosen": "a", "rejected": "b", "imags": []}\n')
    with pytest.raises(DataFileError, match=r"prefs.jsonl:6: unknown column 'imags'; the columns are"):
        train(TrainingJob(data, tmp_path / "m", "m", "", dual_config, TrainConfig()), NoProgress())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prefs.jsonl"]


def test_a_bounded_share_of_invalid_rows_can_be_left_out(dual_config: DualEncoderConfig, tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path, 30)
    good = data.read_text()
    data.write_text('{"prompt": "x", "chosen": "a", "rejected": "a"}\n' + good)
    options = ["--epochs", "1", "--skip-invalid"]
    command = arguments(dual_config, data, tmp_path / "m")[len(COMMAND) :]
    refused = CliRunner().invoke(app, [*command, *options, "--most-invalid", "0.01"])
    assert refused.exit_code == 1
    assert "1 of 31 rows are invalid, and a share of 0.01 may be left out" in " ".join(refused.output.split())
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    assert f"left out: {data}:1: chosen and rejected are the same text" in done.output
    assert "left out: 1 rows" in done.output
    assert json.loads((tmp_path / "m" / "reward.json").read_text())["training"]["left_out_rows"] == 1
    evaluated = ["evaluate", "--data", str(data), "--model", str(tmp_path / "m")]
    assert CliRunner().invoke(app, evaluated).exit_code == 1
    assert "left out: 1 rows" in CliRunner().invoke(app, [*evaluated, "--skip-invalid"]).output


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [("0.png", None, "no file '0.png' in"), ("0.png", b"\x89PNG cut", "0.png: not a readable image")],
)
def test_a_missing_or_corrupt_picture_is_named(
    file: str, content: bytes | None, message: str, dual_config: DualEncoderConfig, tmp_path: Path
) -> None:
    data = kit.write_colour_preferences(tmp_path, 10)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataFileError, match=f"prefs.jsonl:1: images: {message}"):
        train(TrainingJob(data, tmp_path / "m", "m", "", dual_config, TrainConfig()), NoProgress())


def test_a_wrong_checkpoint_path_is_named_with_its_cure(colours: Path, tmp_path: Path) -> None:
    config = VlmConfig(model=str(tmp_path / "nowhere"))
    with pytest.raises(Invalid, match=r"model '.*nowhere' cannot be loaded: .* give the folder"):
        train(TrainingJob(colours, tmp_path / "m", "m", "", config, TrainConfig()), NoProgress())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_of_another_kind_is_refused(text_encoder: Path, colours: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="is of family 'bert', and does not fit the backbone vlm"):
        train(
            TrainingJob(colours, tmp_path / "m", "m", "", VlmConfig(model=str(text_encoder)), TrainConfig()),
            NoProgress(),
        )


def test_a_row_that_is_too_long_is_named(dual_config: DualEncoderConfig, tmp_path: Path) -> None:
    data = kit.write_style_preferences(tmp_path, 12)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    lines[7]["chosen"] = "red " * 40
    kit.write_lines(data, lines)
    with pytest.raises(Invalid, match=r"row 'line-8': the response has 42 tokens; .* at most 32; .* --set"):
        train(TrainingJob(data, tmp_path / "m", "m", "", dual_config, TrainConfig()), NoProgress())


def test_an_existing_folder_is_replaced_only_with_overwrite(
    trained: Path, dual_config: DualEncoderConfig, colours: Path
) -> None:
    with pytest.raises(Conflict, match="exists; choose another --out, or replace it with --overwrite"):
        train(TrainingJob(colours, trained, "m", "", dual_config, TrainConfig()), NoProgress())


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "reward.json").unlink(), "has no reward.json; give a folder written by"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot be loaded .* copy the folder again"),
        (
            lambda folder: (folder / "reward.json").write_text("{}"),
            "reward.json: got format None, wanted 'mor.reward_model/1'",
        ),
    ],
)
def test_a_damaged_model_folder_is_refused(
    damage: Callable[[Path], object], message: str, trained: Path, tmp_path: Path
) -> None:
    import shutil

    folder = Path(shutil.copytree(trained, tmp_path / "model"))
    damage(folder)
    with pytest.raises(Invalid, match=message):
        model_store.load(folder)


# --- the command line ---------------------------------------------------------------------------------------------

COMMAND = [sys.executable, "-m", "mor_reward.cli"]


def arguments(config: DualEncoderConfig, data: Path, out: Path) -> list[str]:
    encoders = ["--vision", config.vision, "--text", config.text, "--set", "image_size=64", "--set", "width=32"]
    return [*COMMAND, "train", "--data", str(data), "--backbone", "dual-encoder", "--out", str(out), *encoders]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)


def test_the_command_trains_and_evaluates(dual_config: DualEncoderConfig, colours: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    done = run([*arguments(dual_config, colours, out), "--epochs", "1", "--name", "shapes"])
    assert done.returncode == 0, done.stderr
    assert "shapes" in done.stdout
    assert "training: " in done.stdout, "a file or a pipe has lines in place of a bar"
    assert "accuracy" in done.stdout
    checked = run([*COMMAND, "evaluate", "--data", str(colours), "--model", str(out)])
    assert checked.returncode == 0, checked.stderr
    assert "240" in checked.stdout


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "image_sise=3"], "dual-encoder.image_sise: unknown field; did you mean 'image_size'?"),
        (["--set", "width"], "error: --set 'width': write it as name=value"),
        (["--lora-rank", "4"], "error: backbone: dual-encoder.lora_rank: unknown field; "),
        (["--heldout-fraction", "0.9"], "error: heldout_fraction: Input should be less than or equal to 0.5"),
    ],
)
def test_an_unknown_or_wrong_setting_is_named(
    extra: list[str], message: str, dual_config: DualEncoderConfig, colours: Path, tmp_path: Path
) -> None:
    done = CliRunner().invoke(app, [*arguments(dual_config, colours, tmp_path / "m")[len(COMMAND) :], *extra])
    assert done.exit_code == 1
    assert message in done.output.replace("\n", " ")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_a_checkpoint_and_no_partial_file(
    dual_config: DualEncoderConfig, colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    command = [*arguments(dual_config, colours, out), "--epochs", "400", "--patience", "400", "--checkpoint-every", "5"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    checkpoint = tmp_path / "model.training" / "checkpoint.pt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "continue with --resume" in stderr
    assert "Traceback" not in stderr
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == [
        "model.training",
        "model.training/checkpoint.pt",
    ]


def test_a_training_goes_on_from_a_finished_model(trained: Path, colours: Path, tmp_path: Path) -> None:
    start = model_store.read_manifest(trained)
    unchanged = TrainConfig(epochs=0)
    job = TrainingJob(colours, tmp_path / "again", "again", "", start.backbone, unchanged, start=trained)
    manifest = train(job, NoProgress())
    assert manifest.calibration == start.calibration
    assert manifest.privacy is None


def test_a_start_brings_its_own_backbone(trained: Path, colours: Path, tmp_path: Path) -> None:
    command = ["train", "--data", str(colours), "--out", str(tmp_path / "m")]
    for options, message in (
        (["--start", str(trained), "--backbone", "text"], "--start brings its backbone"),
        (["--start", str(tmp_path)], "has no reward.json"),
        ([], "give --backbone vlm, dual-encoder or text, or --start"),
    ):
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
