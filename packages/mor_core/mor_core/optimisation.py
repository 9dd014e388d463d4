"""Optimisation of the policy in a run: AdamW with its schedule, and the parameters that are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from mor_core.wire import Documented


class Optimiser(Documented):
    """AdamW and its schedule."""

    lr: float = Field(1e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(5, ge=0)
    """Steps in which the learning rate rises linearly to its peak."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """Learning rate after the warm-up; ``linear`` and ``cosine`` end at zero with the last step."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.99)
    """Decay rates of AdamW's moments."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay; not applied to biases and norms."""
    grad_clip: float = Field(1.0, gt=0)
    """Largest gradient norm; a longer gradient is scaled down to it."""
    max_skipped_updates: int = Field(5, ge=1)
    """Consecutive updates without a finite loss and gradient, each left out, after which the run fails."""
    updates_per_step: int = Field(1, ge=1)
    """Optimiser updates between which a step's groups are divided; weights are published once a step."""


class FullTuning(Documented):
    """Training of every parameter that is not frozen; the reference is a frozen copy of those parameters."""

    kind: Literal["full"] = "full"


class LoraTuning(Documented):
    """Training of low-rank adapters (PEFT); the reference is the same model with the adapters off."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(16, ge=1)
    """Rank of the adapters."""
    alpha: float = Field(32.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha/rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Names of the linear layers of the language model that get an adapter, such as ``["q_proj", "v_proj"]``;
    ``all-linear``: all of them, whatever the family calls them, except those that choose experts."""


Tuning = Annotated[FullTuning | LoraTuning, Field(discriminator="kind")]
