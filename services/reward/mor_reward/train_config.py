"""Configuration of training, apart from the data and the backbone."""

from __future__ import annotations

import math
from typing import Literal

from mor_core.wire import Documented, PrivacyUnit
from pydantic import Field


class PrivateTraining(Documented):
    """Differential privacy of a training. Its noise has no seed, so that no two trainings give equal weights."""

    epsilon: float = Field(gt=0, le=1000)
    """Bound ε of what the model and its figures reveal about one unit; 1 to 8 are usual, smaller hides more."""
    delta: float | None = Field(None, gt=0, lt=1)
    """Probability δ that ε is exceeded, less than 1/units; null: a power of ten that is at most a tenth of that."""
    unit: PrivacyUnit = "picture"
    """Rows whose joint presence is hidden: one ``pair``, all of one ``picture``, or all of one ``person``, which the
    data's column of that name tells."""
    part: Literal["head", "trained"] = "head"
    """Parameters that see private data: the linear ``head`` on features of the frozen rest, which suffers least from
    noise, or all that are ``trained`` without privacy, by DP-SGD."""
    clip: float = Field(1.0, gt=0)
    """Bound of the norm of a unit's gradient with ``part`` = ``trained``; the head's follows from its features."""


class TrainConfig(Documented):
    """Hyper-parameters of training.

    Equal configuration, data, backbone and thread count give equal weights, but not under differential privacy.
    """

    epochs: int = Field(8, ge=0)
    """Passes over the training pairs; 0 calibrates an existing reward model without training it."""
    batch_size: int = Field(32, ge=1)
    """Pairs per step."""
    lr: float = Field(5e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Fraction of the steps with linear warm-up; a cosine decay to zero follows."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Maximum norm of the gradients."""
    centring: float = Field(0.01, ge=0)
    """Weight λ of (r⁺ + r⁻)², which keeps scores near zero."""
    mismatch: int = Field(0, ge=0)
    """Synthetic pairs for each real pair in training: its chosen response against one chosen for the same
    question about another picture. They make the model depend on the picture when preferences are few."""
    heldout_fraction: float = Field(0.2, gt=0, le=0.5)
    """Fraction of the rows held out: half for early stopping and temperature, half for the report."""
    patience: int = Field(3, ge=1)
    """Epochs without improvement on the calibration split after which training stops."""
    seed: int = 0
    """Seed of splits, order, dropout and new weights."""
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""
    privacy: PrivateTraining | None = None
    """Differential privacy; null: none."""


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Return the learning rate of ``step`` (from 0) of ``steps``: linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(steps * config.warmup_ratio))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
