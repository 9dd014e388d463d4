"""Checkpoints of a training job: the whole state of the loop, written atomically, for a bit-equal continuation."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mor_core import atomic
from mor_core.errors import Conflict, Invalid
from mor_core.failures import describe_failure
from torch import Tensor

FILE = "checkpoint.pt"


@dataclass
class TrainingCheckpoint:
    """State of training between two steps."""

    fingerprint: str
    """Hash of data, training configuration, backbone and threads; only the same job may resume."""
    step: int
    """Steps done."""
    weights: dict[str, Tensor]
    """Trainable parameters and buffers."""
    optimiser: dict[str, Any]
    rng: list[Tensor]
    """States of torch's random generators."""
    best_weights: dict[str, Tensor] | None
    best_nll: float
    best_epoch: int
    loss_sum: float
    """Sum of the losses of the current epoch, for the progress note."""


def rng_states() -> list[Tensor]:
    """Return the states of torch's random generators: the CPU's and each CUDA device's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_rng_states(states: list[Tensor]) -> None:
    """Restore the random generators from ``states``."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def write(folder: Path, checkpoint: TrainingCheckpoint) -> None:
    buffer = io.BytesIO()
    torch.save(asdict(checkpoint), buffer)
    atomic.write(folder / FILE, buffer.getvalue(), mode=0o644)


def read(folder: Path, fingerprint: str) -> TrainingCheckpoint:
    """Read the checkpoint in ``folder``.

    Raises:
        Invalid: there is no checkpoint, or its file is damaged.
        Conflict: the checkpoint belongs to other data, another configuration or another backbone.
    """
    file = folder / FILE
    if not file.is_file():
        raise Invalid(f"no checkpoint at {file} to resume from; start without --resume")
    try:
        checkpoint = TrainingCheckpoint(**torch.load(file, weights_only=True))
    except Exception as error:  # torch reports a damaged file by many exception types
        raise Invalid(
            f"checkpoint {file} cannot be read ({describe_failure(error)}); delete {folder} and start without --resume"
        ) from error
    if checkpoint.fingerprint != fingerprint:
        raise Conflict(
            f"checkpoint {file} belongs to other data, settings or another number of threads; "
            f"repeat the original command, or delete {folder} and start without --resume"
        )
    return checkpoint
