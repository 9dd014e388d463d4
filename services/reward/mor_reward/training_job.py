"""Training and evaluation jobs of the command line: from a preference file to a reward model folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mor_core import atomic, disk_full
from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import Conflict, Invalid
from mor_core.wire import PrivacyUnit

from mor_reward import calibration, model_store, training_checkpoint
from mor_reward.backbones import AnyConfig, Backbone, build, on_device
from mor_reward.calibration import PairReport
from mor_reward.given_paths import check_output
from mor_reward.model_store import RewardManifest, TrainingReport
from mor_reward.preference_trainer import (
    PreferencePair,
    PreferenceTrainer,
    TrainingOutcome,
    margins,
    require_scorable,
    wait_for_room,
)
from mor_reward.private_training.privacy_units import check_public, unit_materials
from mor_reward.private_training.private_run import MOST_PUBLIC, PrivateRun
from mor_reward.progress import ProgressReporter
from mor_reward.splits import Splits, split_rows
from mor_reward.train_config import PrivateTraining, TrainConfig


@dataclass(frozen=True)
class TrainingJob:
    """Model, data, output folder and settings of one training."""

    data: Path
    out: Path
    name: str
    domains: str
    backbone: AnyConfig
    train_config: TrainConfig
    resume: bool = False
    overwrite: bool = False
    device: str = "cpu"
    columns: str = ""
    """Other names of the columns in ``data``, see ``mor_core.datafiles.ColumnMap``."""
    most_invalid: float = 0.0
    """Largest share of the rows of ``data`` that may be invalid; they are left out."""
    start: Path | None = None
    """Folder of a reward model of the same backbone whose weights the training starts from."""
    public: Path | None = None
    """Public preferences, whose features scale the head of a private training."""

    @property
    def work(self) -> Path:
        """Folder of the checkpoints until the model is finished."""
        return self.out.with_name(f"{self.out.name}.training")


def train(
    job: TrainingJob,
    reporter: ProgressReporter,
    stopped: Callable[[], bool] = lambda: False,
    left_out: list[str] | None = None,
) -> RewardManifest:
    """Train, calibrate, report and save a reward model. The problems of invalid rows are added to ``left_out``.

    ``job.out`` appears whole at the end. An interrupted job leaves its checkpoint in ``job.work``; a failed job leaves
    only a checkpoint that it wrote before.

    Raises:
        DataFileError: a line of the preference file is invalid.
        Conflict: ``out`` exists, or there is a checkpoint of another job, or of this one and ``resume`` is off.
        Invalid: a checkpoint cannot be loaded, or the backbone cannot score a row.
        TrainingInterrupted: ``stopped`` returned true.
    """
    check_output(job.out, overwrite=job.overwrite)
    if (job.work / training_checkpoint.FILE).exists() and not job.resume:
        raise Conflict(
            f"{job.work} holds the checkpoint of an unfinished training; continue with --resume, or delete that folder"
        )
    problems: list[str] = []
    rows = read_preferences(job.data, job.columns, problems, most_left_out=job.most_invalid)
    if left_out is not None:
        left_out += problems
    pairs = [PreferencePair.of(row) for row in rows]
    privacy = job.train_config.privacy
    unit: PrivacyUnit = "picture" if privacy is None else privacy.unit
    tied = [unit_materials(pair, unit) for pair in pairs]
    splits = split_rows(tied, job.train_config.heldout_fraction, job.train_config.seed)
    public_rows = [] if job.public is None else read_preferences(job.public)[:MOST_PUBLIC]
    public = [PreferencePair.of(row) for row in public_rows]
    check_public(public, pairs, unit)
    private = None if privacy is None else PrivateRun.of(job.train_config, pairs, splits, public)
    torch.manual_seed(job.train_config.seed)
    backbone, origin = _untrained(job, rows)
    require_scorable([*pairs, *public], [*rows, *public_rows], backbone)
    try:
        outcome = fit(
            backbone,
            pairs,
            splits,
            job.train_config,
            fingerprint=_fingerprint(job, rows),
            folder=job.work,
            reporter=reporter,
            stopped=stopped,
            resume=job.resume,
            private=private,
        )
        if private is None:
            temperature = calibration.fit_temperature(margins(backbone, [pairs[row] for row in splits.calibration]))
            report = calibration.report(margins(backbone, [pairs[row] for row in splits.report]), temperature)
            figures = model_store.as_card_calibration(report, temperature)
        else:
            figures = private.figures(backbone, pairs, splits)

        def save() -> RewardManifest:
            with atomic.folder(job.out, replace=job.overwrite, mode=0o755) as folder:
                return model_store.save(
                    folder,
                    backbone,
                    name=job.name,
                    domains=job.domains,
                    calibration=figures,
                    train_config=job.train_config,
                    training=TrainingReport(
                        train_pairs=len(splits.train),
                        left_out_rows=len(problems),
                        calibration_pairs=len(splits.calibration),
                        steps=outcome.steps,
                        best_epoch=outcome.best_epoch,
                        train_seconds=round(outcome.train_seconds, 2),
                        feature_seconds=round(outcome.feature_seconds, 2),
                        data=data_fingerprint(rows, privacy),
                        lora_rank=getattr(job.backbone, "lora_rank", 0),
                        start=None if job.start is None else model_store.read_manifest(job.start).version,
                        public=None if job.public is None else data_fingerprint(public_rows),
                    ),
                    privacy=None if private is None else private.claim(job.train_config, origin),
                )

        manifest = disk_full.write_when_room("the model", save, wait_for_room(stopped))
    except BaseException:
        if job.work.exists() and not (job.work / training_checkpoint.FILE).exists():
            shutil.rmtree(job.work)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    return manifest


def fit(
    backbone: Backbone,
    pairs: Sequence[PreferencePair],
    splits: Splits,
    train_config: TrainConfig,
    *,
    fingerprint: str,
    folder: Path,
    reporter: ProgressReporter,
    stopped: Callable[[], bool],
    resume: bool = False,
    private: PrivateRun | None = None,
) -> TrainingOutcome:
    """Train ``backbone`` by its recipe: the one way for a model and for the shadow models that audit it.

    ``private``: run of a recipe with differential privacy; by default a new one.

    Raises:
        Invalid, Conflict, TrainingInterrupted: see ``PreferenceTrainer`` and ``PrivateRun``.
    """
    private = private or (PrivateRun.of(train_config, pairs, splits) if train_config.privacy else None)
    if private is not None and private.config.part == "head":
        if resume:
            raise Invalid("--dp-part head writes no checkpoint, since it trains in seconds; start without --resume")
        epochs = train_config.epochs
        return private.fit_head(backbone, pairs, splits, epochs=epochs, reporter=reporter, stopped=stopped)
    trainer = (PreferenceTrainer if private is None else private.unit_trainer)(
        backbone,
        pairs,
        splits,
        train_config,
        fingerprint=fingerprint,
        folder=folder,
        reporter=reporter,
        stopped=stopped,
    )
    if resume:
        trainer.resume()
    return trainer.run()


def _untrained(job: TrainingJob, rows: Sequence[Preference]) -> tuple[Backbone, str]:
    """Build the backbone before the training; return it with the origin of its weights.

    Raises:
        Invalid: a checkpoint cannot be loaded, or the start was itself trained on private data.
    """
    if job.start is None:
        backbone = on_device(build(job.backbone, Path.cwd(), pretrained=True), job.device)
        given = job.backbone.model_dump()
        named = [f"{Path(given[role]).name} ({role})" for role in ("model", "vision", "text") if given.get(role)]
        return backbone, f"checkpoints {', '.join(named)} taken as public"
    manifest, backbone = model_store.load(job.start, job.device)
    if job.train_config.privacy is not None and manifest.privacy is not None:
        raise Invalid(
            f"--start {job.start} was trained on private data with ε = {manifest.privacy.epsilon:g}, which would add "
            "up; start from a model of public data"
        )
    if job.train_config.privacy is not None and manifest.training.data == data_fingerprint(rows):
        raise Invalid(
            f"--start {job.start} was trained without privacy on these same rows, so that ε would bound nothing; start "
            "from a model of public data"
        )
    return backbone, f"start model {manifest.name} (version {manifest.version}), said to be of public data"


def evaluate(
    data: Path,
    folder: Path,
    device: str = "cpu",
    columns: str = "",
    *,
    most_invalid: float = 0.0,
    left_out: list[str] | None = None,
) -> tuple[RewardManifest, PairReport]:
    """Measure how the model in ``folder``, at its own temperature, agrees with the preferences of ``data``.

    ``columns``: other names of the columns in ``data``; ``most_invalid``: largest share of its rows that may be
    invalid, whose problems are added to ``left_out``.

    Raises:
        DataFileError, Invalid: the data or the folder is invalid, or the model cannot score a row.
    """
    manifest, backbone = model_store.load(folder, device)
    rows = read_preferences(data, columns, [] if left_out is None else left_out, most_left_out=most_invalid)
    pairs = [PreferencePair.of(row) for row in rows]
    require_scorable(pairs, rows, backbone)
    return manifest, calibration.report(margins(backbone, pairs), manifest.temperature)


def _fingerprint(job: TrainingJob, rows: Sequence[Preference]) -> str:
    """Return a hash of everything that determines the weights."""
    digest = hashlib.sha256()
    digest.update(
        f"{job.train_config.model_dump_json()}{job.backbone.model_dump_json()}{job.device}{torch.get_num_threads()}".encode()
    )
    if job.start is not None:
        digest.update(model_store.read_manifest(job.start).version.encode())
    digest.update(data_fingerprint(rows, job.train_config.privacy).encode())
    return digest.hexdigest()


def data_fingerprint(rows: Sequence[Preference], privacy: PrivateTraining | None = None) -> str:
    """Return the SHA-256 of preferences in their order: equal rows have equal splits.

    Persons belong to it where the training hides these, since the splits follow from them.
    """
    digest = hashlib.sha256()
    for row in rows:
        messages = (message.model_dump_json() for message in row.prompt.messages)
        digest.update("\x1f".join([row.prompt.id, *messages, row.chosen, row.rejected]).encode())
    if privacy is not None and privacy.unit == "person":
        digest.update(json.dumps([row.prompt.person for row in rows]).encode())
    return digest.hexdigest()
