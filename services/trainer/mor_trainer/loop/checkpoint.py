"""A checkpoint is the whole loop: trained tensors, optimiser, random state, ledger, versions, step.

``{run folder}/checkpoints/step-00000020/``: ``trained.safetensors`` and ``optimiser.safetensors`` (by parameter name;
nothing is pickled) and ``state.json``. It is there whole or not at all; the newest few are kept. The learning rate is a
function of the step and needs no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mor_core.errors import Invalid
from mor_core.runs import RunSpec
from pydantic import BaseModel, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mor_trainer import atomic
from mor_trainer.loop.ledger import LedgerState

_STATE = "state.json"
_TRAINED = "trained.safetensors"
_OPTIMISER = "optimiser.safetensors"
_RNG = "rng"


class LoopState(BaseModel):
    """Everything of the loop that is not a tensor."""

    step: int
    weights_version: int
    gate_version: int | None
    ledger: LedgerState
    client_failures: dict[str, dict[str, int]]
    """Groups that each client failed to score, by status."""
    spec: RunSpec


def checkpoints(run_folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-*"))


def save(
    run_folder: Path,
    state: LoopState,
    trainable: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write a checkpoint and delete those before the last ``keep``."""
    names = {id(parameter): name for name, parameter in trainable.items()}
    moments: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    for parameter, values in optimiser.state.items():
        for field, value in values.items():
            moments[f"{names[id(parameter)]}/{field}"] = torch.as_tensor(value).detach().cpu().contiguous()
    target = run_folder / "checkpoints" / f"step-{state.step:08d}"
    with atomic.folder(target) as folder:
        save_file({name: p.detach().cpu().contiguous() for name, p in trainable.items()}, folder / _TRAINED)
        save_file(moments, folder / _OPTIMISER)
        (folder / _STATE).write_text(state.model_dump_json(indent=1))
    atomic.keep_newest(checkpoints(run_folder), keep)
    return target


def read_state(folder: Path) -> LoopState:
    """The state of a checkpoint.

    Raises:
        Invalid: it is not a checkpoint of this version.
    """
    try:
        return LoopState.model_validate_json((folder / _STATE).read_bytes())
    except (OSError, ValidationError) as error:
        raise Invalid(f"checkpoint {folder}: {error}; delete the folder to resume from an older one") from error


def restore(folder: Path, trainable: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer) -> None:
    """Put a checkpoint's tensors and random state into place.

    Raises:
        Invalid: it is a checkpoint of another model or another tuning.
    """
    trained = load_file(folder / _TRAINED)
    wrong = {name for name in trained.keys() | trainable.keys() if _shape(trained, name) != _shape(trainable, name)}
    if wrong:
        raise Invalid(
            f"checkpoint {folder}: {len(wrong)} tensors do not fit the model (first {sorted(wrong)[0]!r}); it belongs "
            "to another model or tuning"
        )
    moments = load_file(folder / _OPTIMISER)
    torch.set_rng_state(moments.pop(_RNG))
    with torch.no_grad():
        for name, parameter in trainable.items():
            parameter.copy_(trained[name])
    optimiser.state.clear()
    for key, value in moments.items():
        name, _, field = key.rpartition("/")
        parameter = trainable[name]
        optimiser.state[parameter][field] = value if field == "step" else value.to(parameter.device)


def _shape(tensors: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
