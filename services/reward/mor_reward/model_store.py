"""The self-contained folder of a trained reward model: weights, ``reward.json``, tokenizers and processors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.problems import describe
from mor_core.wire import Calibration
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from mor_reward.backbones import AnyConfig, Backbone, build, on_device
from mor_reward.train_config import Recipe

MANIFEST = "reward.json"
WEIGHTS = "model.safetensors"


class TrainingReport(BaseModel):
    """What happened in training; none of it is needed to score."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    train_pairs: int
    calibration_pairs: int
    steps: int
    best_epoch: int
    train_seconds: float
    """Steps and evaluations."""
    feature_seconds: float
    """Encoding pictures and texts by frozen towers."""


class RewardManifest(BaseModel):
    """``reward.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: str = "mor.reward_model/1"
    name: str
    domains: str
    """What the model knows about, in the client's words."""
    version: str
    """Hash of weights, configuration and temperature: equal versions give equal scores."""
    backbone: AnyConfig
    calibration: Calibration
    recipe: Recipe
    training: TrainingReport


def save(
    folder: Path,
    backbone: Backbone,
    *,
    name: str,
    domains: str,
    calibration: Calibration,
    recipe: Recipe,
    training: TrainingReport,
) -> RewardManifest:
    """Write a model into the empty ``folder``."""
    config = backbone.export(folder)
    save_model(backbone, str(folder / WEIGHTS))
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes())
    digest.update(json.dumps([config.model_dump(mode="json"), calibration.temperature]).encode())
    manifest = RewardManifest(
        name=name,
        domains=domains,
        version=digest.hexdigest()[:16],
        backbone=config,
        calibration=calibration,
        recipe=recipe,
        training=training,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> RewardManifest:
    """``reward.json`` of ``folder``.

    Raises:
        Invalid: no such folder, or not one that ``mor-reward train`` wrote.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise Invalid(f"{folder} has no {MANIFEST}; give the folder that 'mor-reward train --out' wrote")
    try:
        return RewardManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise Invalid(f"{file}: {describe(error)}; train the model again with this version of mor-reward") from error


def load(folder: Path, device: str = "cpu") -> tuple[RewardManifest, Backbone]:
    """The model in ``folder``, ready to score.

    Raises:
        Invalid: the folder is not a whole reward model, or there is no such device.
    """
    manifest = read_manifest(folder)
    backbone = build(manifest.backbone, folder, pretrained=False)
    try:
        load_model(backbone, str(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise Invalid(f"{folder / WEIGHTS} cannot be loaded ({reason}); copy the folder again or train anew") from error
    return manifest, on_device(backbone.eval(), device)


def card_calibration(report: Any, temperature: float) -> Calibration:
    """A pair report in the form of the card."""
    return Calibration(
        temperature=temperature,
        ece=report.ece,
        pair_accuracy=report.accuracy,
        pair_accuracy_interval=report.interval,
        pairs=report.pairs,
    )
