"""Self-contained folder of a reward model: weights, ``reward.json``, tokenizers and processors."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from mor_core.errors import Invalid
from mor_core.failures import describe, quote_failure
from mor_core.wire import Calibration, Privacy, Sha256, Wire
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model

from mor_reward.backbones import AnyConfig, Backbone, build, on_device
from mor_reward.given_paths import FORMAT, MANIFEST, check_model
from mor_reward.train_config import TrainConfig

WEIGHTS = "model.safetensors"


class TrainingReport(Wire):
    """Record of the training; scoring does not need it."""

    train_pairs: int
    left_out_rows: int = 0
    """Invalid rows of the data, which were left out."""
    calibration_pairs: int
    steps: int
    best_epoch: int
    train_seconds: float
    """Time of steps and evaluations, in seconds."""
    feature_seconds: float
    """Time of encoding pictures and texts by frozen encoders, in seconds."""
    data: Sha256 | None = None
    """Fingerprint of all rows, held-out ones included; an audit wants the same rows."""
    lora_rank: int = 0
    """Rank of the adapters that were trained, and then merged into the weights; 0 without adapters."""
    start: str | None = None
    """Version of the reward model that the training started from; null without one."""
    public: Sha256 | None = None
    """Fingerprint of the public preferences that scaled the head of a private training; null without any."""


class RewardManifest(Wire):
    """Content of ``reward.json``."""

    format: Literal["mor.reward_model/1"] = FORMAT
    name: str
    domains: str
    """Topics that the model can judge, as the client's free text."""
    version: str
    """Hash of weights, configuration and temperature; equal versions give equal scores."""
    backbone: AnyConfig
    calibration: Calibration | None
    """Null where a model was adopted without preferences: its scores are its own logits."""
    recipe: TrainConfig
    training: TrainingReport
    privacy: Privacy | None = None
    """Differential privacy of the training, for the card; null where it had none."""
    adopted: str | None = None
    """Checkpoint that was made a reward model without training; null for a model that was trained."""

    @property
    def temperature(self) -> float:
        """Divisor of raw scores."""
        return 1.0 if self.calibration is None else self.calibration.temperature


def save(
    folder: Path,
    backbone: Backbone,
    *,
    name: str,
    domains: str,
    calibration: Calibration | None,
    train_config: TrainConfig,
    training: TrainingReport,
    privacy: Privacy | None = None,
    adopted: str | None = None,
) -> RewardManifest:
    """Write a model into the empty ``folder`` and return its manifest."""
    config = backbone.export(folder)
    for parameter in backbone.parameters():
        # transformers splits fused tensors of some checkpoints into views of one storage, which cannot be saved.
        if parameter.untyped_storage().nbytes() != parameter.nbytes:
            parameter.data = parameter.data.clone()
    save_model(backbone, str(folder / WEIGHTS))
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes())
    temperature = None if calibration is None else calibration.temperature
    digest.update(json.dumps([config.model_dump(mode="json"), temperature]).encode())
    manifest = RewardManifest(
        name=name,
        domains=domains,
        version=digest.hexdigest()[:16],
        backbone=config,
        calibration=calibration,
        recipe=train_config,
        training=training,
        privacy=privacy,
        adopted=adopted,
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return manifest


def read_manifest(folder: Path) -> RewardManifest:
    """Read ``reward.json`` of ``folder``.

    Raises:
        Invalid: the folder does not exist or was not written by ``mor-reward train`` or ``adopt``.
    """
    check_model(folder)
    file = folder / MANIFEST
    try:
        return RewardManifest.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise Invalid(f"{file}: {describe(error)}; train the model again with this version of mor-reward") from error


def load(folder: Path, device: str = "cpu") -> tuple[RewardManifest, Backbone]:
    """Load the model in ``folder`` for scoring.

    Raises:
        Invalid: the folder is not a complete reward model, or the device does not exist.
    """
    manifest = read_manifest(folder)
    backbone = build(manifest.backbone, folder, pretrained=False)
    try:
        load_model(backbone, str(folder / WEIGHTS))
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = quote_failure(error)
        raise Invalid(
            f"{folder / WEIGHTS} cannot be loaded ({reason}); copy the folder again or train again"
        ) from error
    return manifest, on_device(backbone.eval(), device)


def as_card_calibration(report: Any, temperature: float) -> Calibration:
    """Convert a pair report to the calibration of a card."""
    return Calibration(
        temperature=temperature,
        ece=report.ece,
        pair_accuracy=report.accuracy,
        pair_accuracy_interval=report.interval,
        pairs=report.pairs,
    )
