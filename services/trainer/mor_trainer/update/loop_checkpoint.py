"""Checkpoints of the whole loop: trained tensors, optimiser, random state, ledger, versions, step.

``{run folder}/checkpoints/step-00000020/`` contains ``state.json``, ``shard-….safetensors`` and ``checksums.json``.
Each rank writes its part of the shards with ``torch.distributed.checkpoint`` (nothing is pickled), and another number
of ranks can read them. A checkpoint exists whole or not at all; the newest few are kept. One that cannot be used is set
aside as ``step-00000020.bad``. The learning rate is a function of the step and needs no state.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog
import torch
from mor_core import atomic
from mor_core.disk_full import DiskFull, is_disk_full
from mor_core.errors import Invalid, Unavailable
from mor_core.evaluated_steps import EvaluatedStep, steps_to_keep
from mor_core.failures import describe_failure, quote_failure
from mor_core.plain_files import check_plain_folder, read_plain_file
from mor_core.runs import RunSpec
from mor_core.wire import EventRecord
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from mor_trainer.groups.evaluation import EvaluationState
from mor_trainer.groups.ledger import LedgerState
from mor_trainer.prompts.prompt_hashes import PromptsHash
from mor_trainer.ranks import Ranks
from mor_trainer.run_files import checkpoint_of, checkpoints, damaged_checkpoints, step_of
from mor_trainer.update.checkpoint_checksums import DamagedCheckpoint, has_checksums, write_checksums

_STATE = "state.json"
_LARGEST_STATE = 128 << 20
"""Bytes; the ledger of a long run has a few megabytes, and events up to 32."""
_MODEL, _OPTIMISER, _RNG = "model/", "optimiser/", "rng"

log = structlog.get_logger(__name__)


class LoopState(BaseModel):
    """State of the loop without its tensors."""

    step: int
    weights_version: int
    gate_version: int | None
    ledger: LedgerState
    client_failures: dict[str, dict[str, int]]
    """Groups that each client failed to score, by status."""
    spec: RunSpec
    prompts: tuple[PromptsHash, ...] = ()
    """Hash of each file's prompts; empty in a checkpoint of an earlier version."""
    events: list[EventRecord] = Field(default_factory=list)
    """Events that the history had not confirmed; the next attempt sends them again, under their numbers."""
    evaluation: EvaluationState | None = None
    """Evaluation that was going on, which the next attempt continues."""
    evaluated: list[EvaluatedStep] = Field(default_factory=list)
    """Finished evaluations; the checkpoint of the best one is kept."""
    checksummed: bool = False
    """False in a checkpoint of an earlier version, which has no ``checksums.json``."""


def set_aside(checkpoint: Path) -> Path:
    """Rename a checkpoint that cannot be used, so that an operator can look at it, and return its new path.

    Raises:
        OSError: the folder cannot be changed.
    """
    target, number = checkpoint.with_name(f"{checkpoint.name}.bad"), 1
    while target.exists():
        number += 1
        target = checkpoint.with_name(f"{checkpoint.name}.bad-{number}")
    return checkpoint.rename(target)


def save(
    run_folder: Path,
    state: LoopState,
    trainable: Mapping[str, nn.Parameter],
    optimiser: torch.optim.Optimizer,
    *,
    keep: int,
    ranks: Ranks,
    staging: Path | None = None,
) -> Path:
    """Write a checkpoint and delete those before the last ``keep``, but not that of the best evaluation.

    All ranks call it and share the folder.

    Raises:
        DiskFull: a rank found no room; nothing of the checkpoint is there.
    """
    target = checkpoint_of(run_folder, state.step)
    tensors: dict[str, Tensor] = {_RNG: torch.get_rng_state()}
    tensors |= {f"{_MODEL}{name}": parameter.detach() for name, parameter in trainable.items()}
    for name, parameter in trainable.items():
        for field, value in optimiser.state.get(parameter, {}).items():
            tensors[f"{_OPTIMISER}{name}/{field}"] = value.reshape(1) if value.dim() == 0 else value

    def write(folder: Path) -> None:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        try:
            _without_warning(lambda: state_dict_saver.save(tensors, storage_writer=writer, process_group=ranks.group))
        except CheckpointException as error:  # a BaseException, raised on every rank
            reasons = [failure for failure, _ in error.failures.values()]
            raise _failure(target, next(filter(is_disk_full, reasons), reasons[0])) from error

    if not ranks.leads:
        folder = ranks.gather(None)[0]
        if folder is None:
            raise DiskFull(f"checkpoint {target}: rank 0 found no room")
        write(folder)
        write_checksums(folder, ranks)
        return target
    begun = False
    try:
        with atomic.folder(target, staging=staging) as folder:
            (folder / _STATE).write_text(state.model_copy(update={"checksummed": True}).model_dump_json(indent=1))
            begun = True  # the other ranks wait for the folder; from now on each step is one of all ranks
            ranks.gather(folder)
            write(folder)
            write_checksums(folder, ranks)
    except OSError as error:
        if not begun:
            ranks.gather(None)
        raise _failure(target, error) from error
    there = {step_of(checkpoint): checkpoint for checkpoint in checkpoints(run_folder)}
    pending = None if state.evaluation is None else state.evaluation.step
    for step in there.keys() - steps_to_keep([*there], keep, state.evaluated, pending):
        atomic.delete(there[step], staging=staging)
    for damaged in damaged_checkpoints(run_folder)[:-keep]:
        log.warning("a damaged checkpoint is deleted, newer ones were set aside", checkpoint=str(damaged))
        atomic.delete(damaged, staging=staging)
    return target


def read_state(folder: Path) -> LoopState:
    """Read the state of a checkpoint.

    Raises:
        DamagedCheckpoint: it is no checkpoint of this version.
        Unavailable: the file cannot be read now.
    """
    try:
        check_plain_folder(folder)
        state = LoopState.model_validate_json(read_plain_file(folder / _STATE, _LARGEST_STATE), extra="ignore")
    except (FileNotFoundError, NotADirectoryError, ValidationError, Invalid) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {describe_failure(error)}") from error
    except OSError as error:
        raise Unavailable(f"checkpoint {folder}: {describe_failure(error)}; check the disk of MOR_RUNS_DIR") from error
    if state.checksummed and not has_checksums(folder):
        raise DamagedCheckpoint(f"checkpoint {folder}: checksums.json is missing")
    return state


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds the state of a loop, of whatever worth."""
    return (folder / _STATE).is_file()


def newest_state(run_folder: Path) -> LoopState | None:
    """Read the state of the newest checkpoint of a run that can be read, if there is one."""
    for folder in reversed(checkpoints(run_folder)):
        with suppress(Invalid):
            return read_state(folder)
    return None


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
    tensors = {_RNG: torch.get_rng_state(), **moments, **_model_tensors(trainable)}
    _load(folder, tensors, ranks, lambda: torch.set_rng_state(tensors[_RNG]))
    optimiser.state.clear()
    for key, value in moments.items():
        name, _, field = key.removeprefix(_OPTIMISER).rpartition("/")
        optimiser.state[trainable[name]][field] = value.reshape(()) if field == "step" else value


def restore_weights(folder: Path, trainable: Mapping[str, nn.Parameter], ranks: Ranks) -> None:
    """Load a checkpoint's trained tensors alone.

    Raises:
        Invalid: the checkpoint is of another model or tuning, or cannot be read.
    """
    _tensor_sizes(folder, trainable)
    _load(folder, _model_tensors(trainable), ranks)


def _model_tensors(trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {f"{_MODEL}{name}": parameter.detach() for name, parameter in trainable.items()}


def _load(folder: Path, tensors: dict[str, Tensor], ranks: Ranks, use: Callable[[], object] = tuple) -> None:
    """Read ``tensors`` from a checkpoint, and ``use`` them."""
    reader = HuggingFaceStorageReader(str(folder))
    try:
        _without_warning(lambda: state_dict_loader.load(tensors, storage_reader=reader, process_group=ranks.group))
        use()
    except (Exception, CheckpointException) as error:  # whatever a library makes of a broken file
        raise Invalid(f"checkpoint {folder}: {quote_failure(error)}") from error


def _tensor_sizes(folder: Path, trainable: Mapping[str, nn.Parameter]) -> dict[str, tuple[int, ...]]:
    """Return the sizes of a checkpoint's tensors, after a check that its parameters are the model's."""
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # whatever a library makes of a broken file
        raise Invalid(f"checkpoint {folder}: {quote_failure(error)}") from error
    sizes = {key: tuple(tensor.size) for key, tensor in found.items() if isinstance(tensor, TensorStorageMetadata)}
    saved = {key.removeprefix(_MODEL): size for key, size in sizes.items() if key.startswith(_MODEL)}
    wanted = {name: tuple(parameter.shape) for name, parameter in trainable.items()}
    wrong = {name for name in saved.keys() | wanted.keys() if saved.get(name) != wanted.get(name)}
    if wrong:
        raise Invalid(
            f"checkpoint {folder}: {len(wrong)} tensors do not fit the model (first {sorted(wrong)[0]!r}); it belongs "
            "to another model or tuning"
        )
    return sizes


def _moments(folder: Path, trainable: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """Allocate tensors for the optimiser's state in a checkpoint."""
    moments: dict[str, Tensor] = {}
    for key in _tensor_sizes(folder, trainable):
        name, _, field = key.removeprefix(_OPTIMISER).rpartition("/")
        if key.startswith(_OPTIMISER) and name in trainable:
            moments[key] = torch.zeros(1) if field == "step" else torch.zeros_like(trainable[name])
    return moments


def _failure(target: Path, error: BaseException) -> BaseException:
    """Return the error for a checkpoint that could not be written: ``DiskFull`` where that is the reason."""
    if is_disk_full(error):
        return DiskFull(f"checkpoint {target.name} found no room ({describe_failure(error)}); make room on its disk")
    return error


def _without_warning(call: Callable[[], object]) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # true of a single process
        call()
