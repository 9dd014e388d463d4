"""From a preference file to a reward model folder, and back to figures: what the command line calls."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from mor_core.datafiles import Preference, read_preferences
from mor_core.errors import Conflict

from mor_reward import calibration, checkpoint, model_store
from mor_reward.backbones import AnyConfig, build, on_device
from mor_reward.calibration import PairReport
from mor_reward.files import folder_whole
from mor_reward.model_store import RewardManifest, TrainingReport
from mor_reward.progress import Reporter
from mor_reward.splits import materials, split_rows
from mor_reward.train_config import Recipe
from mor_reward.trainer import Pair, Trainer, check, margins


@dataclass(frozen=True)
class Job:
    """What to train, from what, and where to put it."""

    data: Path
    out: Path
    name: str
    domains: str
    backbone: AnyConfig
    recipe: Recipe
    resume: bool = False
    overwrite: bool = False
    device: str = "cpu"

    @property
    def work(self) -> Path:
        """Where checkpoints lie until the model is finished."""
        return self.out.with_name(f"{self.out.name}.training")


def train(job: Job, reporter: Reporter, stopped: Callable[[], bool] = lambda: False) -> RewardManifest:
    """Train, calibrate, report and save a reward model.

    ``job.out`` appears whole at the end. An interrupted run leaves its checkpoint in ``job.work``; a failed one leaves
    nothing but a checkpoint that was written before.

    Raises:
        DataFileError: a bad line of the preference file.
        Conflict: ``out`` exists, or a checkpoint stands there and ``resume`` is off, or belongs to another job.
        Invalid: a checkpoint cannot be loaded, or the backbone cannot score a row.
        Interrupted: ``stopped`` said so.
    """
    if job.out.exists() and not job.overwrite:
        raise Conflict(f"{job.out} exists; choose another --out, or replace it with --overwrite")
    if (job.work / checkpoint.FILE).exists() and not job.resume:
        raise Conflict(
            f"{job.work} holds the checkpoint of an unfinished training; go on with --resume, or delete that folder"
        )
    rows = read_preferences(job.data)
    splits = split_rows([materials(row) for row in rows], job.recipe.heldout_fraction, job.recipe.seed)
    torch.manual_seed(job.recipe.seed)
    backbone = on_device(build(job.backbone, Path.cwd(), pretrained=True), job.device)
    pairs = [Pair.of(row) for row in rows]
    check(pairs, rows, backbone)
    try:
        trainer = Trainer(
            backbone,
            pairs,
            splits,
            job.recipe,
            fingerprint=_fingerprint(job, rows),
            folder=job.work,
            reporter=reporter,
            stopped=stopped,
        )
        if job.resume:
            trainer.resume()
        outcome = trainer.run()
        temperature = calibration.fit_temperature(margins(backbone, [pairs[row] for row in splits.calibration]))
        report = calibration.report(margins(backbone, [pairs[row] for row in splits.report]), temperature)
        with folder_whole(job.out, overwrite=job.overwrite) as folder:
            manifest = model_store.save(
                folder,
                backbone,
                name=job.name,
                domains=job.domains,
                calibration=model_store.card_calibration(report, temperature),
                recipe=job.recipe,
                training=TrainingReport(
                    train_pairs=len(splits.train),
                    calibration_pairs=len(splits.calibration),
                    steps=outcome.steps,
                    best_epoch=outcome.best_epoch,
                    train_seconds=round(outcome.train_seconds, 2),
                    feature_seconds=round(outcome.feature_seconds, 2),
                ),
            )
    except BaseException:
        if job.work.exists() and not (job.work / checkpoint.FILE).exists():
            shutil.rmtree(job.work)
        raise
    shutil.rmtree(job.work, ignore_errors=True)
    return manifest


def evaluate(data: Path, folder: Path, device: str = "cpu") -> tuple[RewardManifest, PairReport]:
    """How the model in ``folder`` agrees with the preferences of ``data``, at its own temperature.

    Raises:
        DataFileError, Invalid: the data or the folder is bad, or the model cannot score a row.
    """
    manifest, backbone = model_store.load(folder, device)
    rows = read_preferences(data)
    pairs = [Pair.of(row) for row in rows]
    check(pairs, rows, backbone)
    return manifest, calibration.report(margins(backbone, pairs), manifest.calibration.temperature)


def _fingerprint(job: Job, rows: Sequence[Preference]) -> str:
    """Hash of all that decides the weights."""
    digest = hashlib.sha256()
    digest.update(
        f"{job.recipe.model_dump_json()}{job.backbone.model_dump_json()}{job.device}{torch.get_num_threads()}".encode()
    )
    for row in rows:
        parts = [
            row.prompt.id,
            *(message.model_dump_json() for message in row.prompt.messages),
            row.chosen,
            row.rejected,
        ]
        digest.update("\x1f".join(parts).encode())
    return digest.hexdigest()
