"""Export of a checkpoint as a model that transformers loads, or as an adapter that PEFT loads.

It runs in a process of its own: the whole model is in memory, in float32, on one CPU.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mor_core import atomic
from mor_core.errors import Invalid, Unavailable
from mor_core.memory import available_bytes
from mor_core.model_parameters import ModelParameters
from mor_core.optimisation import LoraTuning
from mor_core.runs import RunSpec
from mor_core.weight_files import ADAPTER_CONFIG
from torch import Tensor

from mor_trainer.model import loading
from mor_trainer.ranks import Ranks
from mor_trainer.results.model_card import CardFacts, base_name, write_card
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.checkpoint_checksums import check_checksums, has_checksums

_FLOAT32 = 4
_RUNTIME = 1 << 30
"""Main memory of Python, PyTorch and its libraries, bytes."""
_GIB = 1 << 30


def export_checkpoint(checkpoint: Path, target: Path, *, adapter: bool = False) -> None:
    """Write the model of a checkpoint to the new folder ``target``. ``adapter``: the trained adapter alone.

    Raises:
        Invalid: the checkpoint cannot be used, its base model cannot be loaded, or the run trained no adapter.
        Conflict: ``target`` exists.
        Unavailable: the memory is too small for the model.
    """
    if not loop_checkpoint.is_checkpoint(checkpoint):
        raise Invalid(f"{checkpoint} is no checkpoint of a run; give a folder checkpoints/step-... below MOR_RUNS_DIR")
    ranks = Ranks(torch.device("cpu"))
    state = loop_checkpoint.read_state(checkpoint)
    spec = state.spec
    if adapter and not isinstance(spec.tuning, LoraTuning):
        raise Invalid("the run trained no adapter (its tuning is full); export the whole model, without --adapter")
    _check_memory(spec.model)
    if has_checksums(checkpoint):
        check_checksums(checkpoint, ranks)
    model, processor = loading.load(spec.model)
    peft = loading.tune(model, spec.tuning, spec.freeze_vision)
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loop_checkpoint.restore_weights(checkpoint, trainable, ranks)
    with atomic.folder(target, replace=False) as folder:
        if adapter and peft is not None:
            peft.save_pretrained(folder)
            _name_base(folder / ADAPTER_CONFIG, base_name(spec.model))
        else:
            save_merged(model, peft, processor, folder)
        write_card(folder, CardFacts(spec, state.step, adapter=adapter))  # in place of PEFT's, which has paths


def write_aligned(spec: RunSpec, trained: Mapping[str, Tensor], target: Path, staging: Path | None) -> None:
    """Write the aligned model of a run from its ``trained`` tensors, with adapters merged in."""
    model, processor = loading.load(spec.model)
    peft = loading.tune(model, spec.tuning, spec.freeze_vision)
    missing = model.load_state_dict(dict(trained), strict=False).unexpected_keys
    assert not missing, missing
    with atomic.folder(target, staging=staging) as folder:
        save_merged(model, peft, processor, folder)
        write_card(folder, CardFacts(spec, spec.steps))


def save_merged(model: Any, peft: Any | None, processor: Any, folder: Path) -> None:
    """Write model, with adapters merged in, and processor as a checkpoint like any other."""
    (model if peft is None else peft.merge_and_unload()).save_pretrained(folder)
    processor.save_pretrained(folder)


def _name_base(config: Path, base: str) -> None:
    """Name the base model in the file that PEFT wrote, which has its path on this machine."""
    config.write_text(json.dumps(json.loads(config.read_bytes()) | {"base_model_name_or_path": base}, indent=2))


def _check_memory(checkpoint: str) -> None:
    """
    Raises:
        Unavailable: the base model of this folder does not fit into the memory that is free.
    """
    if not Path(checkpoint).is_dir():  # a model of the hub
        return
    needed = _FLOAT32 * ModelParameters.of_folder(Path(checkpoint)).total + _RUNTIME
    free = available_bytes()
    if free is not None and free < needed:
        raise Unavailable(
            f"{free / _GIB:.1f} GiB of memory are free here, and the export needs {needed / _GIB:.1f} GiB; run "
            "'mor-trainer export CHECKPOINT FOLDER' where a worker runs, or raise this process's memory"
        )
