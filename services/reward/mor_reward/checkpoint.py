"""Checkpoints of a training run: the whole loop, written atomically, for a bit-equal continuation."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mor_core.errors import Conflict, Invalid
from torch import Tensor

from mor_reward.files import write_whole

FILE = "checkpoint.pt"


@dataclass
class Checkpoint:
    """The state between two steps."""

    fingerprint: str
    """Hash of data, recipe, backbone and threads: a checkpoint continues nothing else."""
    step: int
    """Steps done."""
    weights: dict[str, Tensor]
    """Trainable parameters and buffers."""
    optimiser: dict[str, Any]
    rng: list[Tensor]
    """States of torch's generators."""
    best_weights: dict[str, Tensor] | None
    best_nll: float
    best_epoch: int
    loss_sum: float
    """Loss of the current epoch so far, for its note."""


def generators() -> list[Tensor]:
    """States of torch's generators: the processor's and each CUDA device's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]


def set_generators(states: list[Tensor]) -> None:
    """Put the generators back into ``states``."""
    torch.set_rng_state(states[0])
    if len(states) > 1:
        torch.cuda.set_rng_state_all(states[1:])


def write(folder: Path, checkpoint: Checkpoint) -> None:
    buffer = io.BytesIO()
    torch.save(asdict(checkpoint), buffer)
    write_whole(folder / FILE, buffer.getvalue())


def read(folder: Path, fingerprint: str) -> Checkpoint:
    """The checkpoint in ``folder``.

    Raises:
        Invalid: there is none, or its file is damaged.
        Conflict: it belongs to other data, another recipe or another backbone.
    """
    file = folder / FILE
    if not file.is_file():
        raise Invalid(f"no checkpoint at {file} to resume from; start without --resume")
    try:
        checkpoint = Checkpoint(**torch.load(file, weights_only=True))
    except Exception as error:  # torch reports a damaged file by many types
        raise Invalid(
            f"checkpoint {file} cannot be read ({error}); delete {folder} and start without --resume"
        ) from error
    if checkpoint.fingerprint != fingerprint:
        raise Conflict(
            f"checkpoint {file} is of other data, settings or number of threads; "
            f"repeat the command it was started with, or delete {folder} and start without --resume"
        )
    return checkpoint
