"""What a training run is: everything but the data and the backbone."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """Hyper-parameters of training. The same recipe, data, backbone and number of threads give the same weights."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    epochs: int = Field(8, ge=0)
    """Passes over the training pairs; 0 only calibrates a model that already scores."""
    batch_size: int = Field(32, ge=1)
    """Pairs a step."""
    lr: float = Field(5e-4, gt=0)
    """Largest learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay."""
    warmup_ratio: float = Field(0.1, ge=0, le=1)
    """Share of the steps in which the learning rate rises; it then falls as a cosine to zero."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Norm to which gradients are clipped."""
    centring: float = Field(0.01, ge=0)
    """Weight λ of (r⁺ + r⁻)², which keeps scores near zero."""
    mismatch: int = Field(0, ge=0)
    """Pairs made up for each real one in training: the chosen response against one that was chosen for the same
    question about another picture. They teach to look at the picture where preferences alone are too few for that."""
    heldout_fraction: float = Field(0.2, gt=0, le=0.5)
    """Share of the rows held out: half for early stopping and temperature, half for the report."""
    patience: int = Field(3, ge=1)
    """Epochs without a better calibration split after which training stops."""
    seed: int = 0
    """Decides splits, order, dropout and new weights."""
    checkpoint_every: int = Field(50, ge=1)
    """Steps between checkpoints."""


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Learning rate of ``step`` (from 0) of ``steps``: linear warm-up, then cosine to zero."""
    warmup = max(1, round(steps * recipe.warmup_ratio))
    if step < warmup:
        return recipe.lr * (step + 1) / warmup
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
