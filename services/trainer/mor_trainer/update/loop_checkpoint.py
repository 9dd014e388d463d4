"""Checkpoints of the whole loop: trained tensors, optimiser, random state, ledger, versions, step.

``{run folder}/checkpoints/step-00000020/`` contains ``state.json`` and ``shard-….safetensors``. Each rank writes its
part of these with ``torch.distributed.checkpoint`` (nothing is pickled), and another number of ranks can read them. A
checkpoint exists whole or not at all; the newest few are kept. The learning rate is a function of the step and needs no
state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe_failure, quote_failure
from mor_core.plain_files import check_plain_folder, read_plain_file
from mor_core.runs import RunSpec
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mor_trainer.groups.ledger import LedgerState
from mor_trainer.ranks import Ranks

_STATE = "state.json"
_LARGEST_STATE = 64 << 20
"""Bytes; the ledger of a long run has a few megabytes."""
_MODEL, _OPTIMISER, _RNG = "model/", "optimiser/", "rng"


class LoopState(BaseModel):
    """State of the loop without its tensors."""

    step: int
    weights_version: int
    gate_version: int | None
    ledger: LedgerState
    client_failures: dict[str, dict[str, int]]
    """Groups that each client failed to score, by status."""
    spec: RunSpec


def checkpoints(run_folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-*"))


def save(
    run_folder: Path,
    state: LoopState,
    trainable: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    *,
    keep: int,
    ranks: Ranks,
) -> Path:
    """Write a checkpoint and delete those before the last ``keep``. All ranks call it and share the folder."""
    target = run_folder / "checkpoints" / f"step-{state.step:08d}"
    tensors: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    tensors |= {f"{_MODEL}{name}": parameter.detach() for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        for field, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{_OPTIMISER}{name}/{field}"] = value.reshape(1) if value.dim() == 0 else value

    def write(folder: Path) -> None:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        _without_warning(lambda: state_dict_saver.save(tensors, storage_writer=writer, process_group=ranks.group))

    if ranks.leads:
        with atomic.folder(target) as folder:
            ranks.gather(folder)
            write(folder)
            (folder / _STATE).write_text(state.model_dump_json(indent=1))
        atomic.keep_newest(checkpoints(run_folder), keep)
    else:
        write(ranks.gather(run_folder)[0])
    return target


def read_state(folder: Path) -> LoopState:
    """Read the state of a checkpoint.

    Raises:
        Invalid: the folder is not a checkpoint of this version.
    """
    try:
        check_plain_folder(folder)
        return LoopState.model_validate_json(read_plain_file(folder / _STATE, _LARGEST_STATE), extra="ignore")
    except (OSError, ValidationError, Invalid) as error:
        raise Invalid(
            f"checkpoint {folder}: {describe_failure(error)}; delete the folder to resume from an older one"
        ) from error


def restore(
    folder: Path, trainable: Mapping[str, nn.Parameter], optimiser: torch.optim.Optimizer, ranks: Ranks
) -> None:
    """Load a checkpoint's tensors and random state. All ranks call it; their number may have changed.

    Raises:
        Invalid: the checkpoint is of another model or tuning, or cannot be read.
    """
    error = None
    moments: dict[str, Tensor] = {}
    try:
        moments = _moments(folder, trainable)
    except Invalid as found:
        error = found
    ranks.raise_first(error)
    tensors = {_RNG: torch.get_rng_state(), **moments}
    tensors |= {f"{_MODEL}{name}": parameter.detach() for name, parameter in trainable.items()}
    reader = HuggingFaceStorageReader(str(folder))
    try:
        _without_warning(lambda: state_dict_loader.load(tensors, storage_reader=reader, process_group=ranks.group))
    except Exception as error:  # whatever a library makes of a broken file
        raise Invalid(
            f"checkpoint {folder}: {quote_failure(error)}; delete the folder to resume from an older one"
        ) from error
    torch.set_rng_state(tensors[_RNG])
    optimiser.state.clear()
    for key, value in moments.items():
        name, _, field = key.removeprefix(_OPTIMISER).rpartition("/")
        optimiser.state[trainable[name]][field] = value.reshape(()) if field == "step" else value


def _moments(folder: Path, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Allocate tensors for the optimiser's state in a checkpoint, after a check that its parameters are the model's."""
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError, ValueError) as error:
        raise Invalid(
            f"checkpoint {folder}: {quote_failure(error)}; delete the folder to resume from an older one"
        ) from error
    sizes = {key: tuple(tensor.size) for key, tensor in found.items() if isinstance(tensor, TensorStorageMetadata)}
    saved = {key.removeprefix(_MODEL): size for key, size in sizes.items() if key.startswith(_MODEL)}
    wanted = {name: tuple(parameter.shape) for name, parameter in trainable.items()}
    wrong = {name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)}
    if wrong:
        raise Invalid(
            f"checkpoint {folder}: {len(wrong)} tensors do not fit the model (first {sorted(wrong)[0]!r}); it belongs "
            "to another model or tuning"
        )
    moments: dict[str, Tensor] = {}
    for key in sizes:
        if key.startswith(_OPTIMISER):
            name, _, field = key.removeprefix(_OPTIMISER).rpartition("/")
            moments[key] = torch.zeros(1) if field == "step" else torch.zeros_like(trainable[name])
    return moments


def _without_warning(call: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # true of a single process
        call()
