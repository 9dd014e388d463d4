"""Check before the first step that the disks can hold what a run will write, and engines what they will pull."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from mor_core.disk_full import existing, folder_bytes
from mor_core.errors import Invalid
from mor_core.run_size import RunSize
from mor_core.run_status import EngineLimits
from mor_core.runs import RunSpec

from mor_trainer.update.learner import Learner
from mor_trainer.weights.published_type import PublishedTensors

_GIB = 1 << 30
_MOMENTS = 2
"""Tensors of AdamW for each trained one, of the same size."""
_PULLED_AT_LEAST = 2
"""Versions on an engine's disk: the one in use and the next; it deletes others where there is no room."""


def run_size(learner: Learner, dtype: torch.dtype) -> RunSize:
    """Return the sizes of what a run writes, with published weights in ``dtype``."""
    trainable = learner.policy.trainable
    trained = sum(parameter.nbytes for parameter in trainable.values())
    return RunSize(PublishedTensors(trainable, dtype).bytes, (1 + _MOMENTS) * trained, learner.model_bytes())


def check_room(
    spec: RunSpec, size: RunSize, run_folder: Path, reserve: int, engines: Sequence[EngineLimits]
) -> str | None:
    """Compare a run's size with the disks; return a warning where room must be made during the run.

    ``reserve``: bytes that stay free.

    Raises:
        Invalid: the disk of the runs, or of an engine of the run's model, is too small even when it is empty.
    """
    needed = size.under_way(spec) + reserve
    parts = (
        f"{spec.keep_checkpoints + 1} checkpoints of {_gib(size.checkpoint)}, {spec.keep_weights + 1} versions of"
        f" {_gib(size.version)} and the final model of {_gib(size.final)}"
    )
    disk = shutil.disk_usage(existing(run_folder))
    if disk.total < needed:
        raise Invalid(
            f"the disk of MOR_RUNS_DIR has {_gib(disk.total)}, the run needs {_gib(needed)}: {parts}. Enlarge it as"
            " 'mor size' says (in the chart: control.runs.size), or lower keep_checkpoints and keep_weights"
        )
    for engine in engines:
        room = engine.weights_bytes
        if engine.model == spec.model and room is not None and room < _PULLED_AT_LEAST * size.version:
            raise Invalid(
                f"the volume for pulled weights of rollout service {engine.name} has {_gib(room)},"
                f" {_PULLED_AT_LEAST} versions of {_gib(size.version)} must fit: the one in use and the next. Enlarge"
                " it as 'mor size' says (MOR_WEIGHTS_BYTES; in the chart: rollout.weightsSize)"
            )
    own = folder_bytes(run_folder)
    if disk.free + own < needed:
        return (
            f"{_gib(disk.free)} are free on the disk of MOR_RUNS_DIR; the run needs {_gib(needed - own)} more: {parts}."
            " It will wait for room unless run control deletes files of ended runs: make room, or enlarge the disk"
        )
    return None


def _gib(amount: int) -> str:
    return f"{amount / _GIB:.2f} GiB"
