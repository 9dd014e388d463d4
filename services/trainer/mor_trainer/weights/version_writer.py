"""Writer of weight versions: the trained tensors in their own folder, with a checksum for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from mor_core import atomic
from mor_core.sealed_json import seal
from mor_core.weight_checksums import checksum, file_checksum
from mor_core.wire import Algorithm, WeightsDelta, WeightsFile, WeightsManifest
from torch import Tensor

from mor_trainer.weights import tensor_file
from mor_trainer.weights.published_type import PublishedTensors
from mor_trainer.weights.version_files import MANIFEST, file_of, published_versions, read_manifest, weights_folder

_FULL_FILE = "model.safetensors"
_DELTA_FILE = "model.delta"
_ADAPTER_FILE = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"


def full_tensors(model: Any, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the trained tensors under the names that ``save_pretrained`` gives them, which loaders know.

    transformers renames parts of some classes when it loads them (``model.language_model.…`` is
    ``model.…`` in a Qwen2.5-VL checkpoint). This function applies the same rules backwards.
    """
    from transformers.core_model_loading import revert_weight_conversion

    detached = {name: tensor.detach() for name, tensor in trainable.items()}
    renamed: dict[str, Tensor] = revert_weight_conversion(model, detached)
    return renamed


def adapter_tensors(adapter: Any, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a PEFT adapter under the names that its file gives them."""
    from peft import get_peft_model_state_dict

    named = {f"base_model.model.{name}": tensor for name, tensor in trainable.items()}
    state: dict[str, Tensor] = get_peft_model_state_dict(adapter, state_dict=named)
    return state


def write_version(
    run_folder: Path,
    run: str,
    version: int,
    base: str,
    *,
    model: Any,
    adapter: Any | None,
    trainable: Mapping[str, Tensor],
    keep: int,
    dtype: torch.dtype = torch.float32,
    algorithm: Algorithm = "blake3",
    staging: Path | None = None,
) -> WeightsManifest:
    """Write a version, with matrices in ``dtype``, and delete all but the newest ``keep``.

    ``algorithm``: hash function of its checksums. Full weights with BLAKE3 have a delta against the version before,
    where it is small. The tensors must not change meanwhile.
    """
    kind: Literal["full", "lora"] = "full" if adapter is None else "lora"
    tensors = full_tensors(model, trainable) if adapter is None else adapter_tensors(adapter, trainable)
    target = weights_folder(run_folder) / str(version)
    with atomic.folder(target, durable=False, staging=staging) as folder:
        name = _FULL_FILE if adapter is None else _ADAPTER_FILE
        former, base_file = _former_file(run_folder, version) if (kind, algorithm) == ("full", "blake3") else (0, None)
        written = tensor_file.write(
            folder / name, PublishedTensors(tensors, dtype), algorithm, base=base_file, delta=folder / _DELTA_FILE
        )
        files = [written.file]
        if adapter is not None:
            content = _adapter_config(adapter)
            (folder / _ADAPTER_CONFIG).write_bytes(content)
            found = {algorithm: checksum(content, algorithm)}
            files.append(WeightsFile(name=_ADAPTER_CONFIG, bytes=len(content), **found))
        delta = _listed_delta(folder / _DELTA_FILE, former) if written.has_delta else None
        manifest = WeightsManifest(
            run=run, version=version, base=base, kind=kind, files=tuple(files), tensors=written.tensors, delta=delta
        )
        (folder / MANIFEST).write_bytes(seal(manifest.model_dump_json(exclude_none=True).encode()))
    versions = [weights_folder(run_folder) / str(v) for v in published_versions(run_folder)]
    atomic.keep_newest(versions, keep, staging=staging)
    return manifest


def _former_file(run_folder: Path, version: int) -> tuple[int, Path | None]:
    """Return the newest version before this one, and its file of full weights; ``None`` where there is none."""
    former = max((known for known in published_versions(run_folder) if known < version), default=-1)
    try:
        manifest = read_manifest(run_folder, former)
    except OSError:  # another user's
        manifest = None
    if manifest is None or [file.name for file in manifest.files] != [_FULL_FILE]:
        return former, None
    return former, file_of(run_folder, former, manifest.files[0])


def _listed_delta(path: Path, base: int) -> WeightsDelta:
    found = file_checksum(path, "blake3")
    return WeightsDelta(name=path.name, bytes=found.bytes, blake3=found.hexdigest(), base=base)


def _adapter_config(adapter: Any) -> bytes:
    config = adapter.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    config["inference_mode"] = True

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    return json.dumps(config, default=plain, indent=1).encode()
