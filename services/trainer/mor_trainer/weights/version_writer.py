"""Writer of weight versions: the trained tensors in their own folder, with a checksum for each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from mor_core import atomic
from mor_core.sealed_json import seal
from mor_core.weight_checksums import checksum
from mor_core.wire import Algorithm, WeightsFile, WeightsManifest
from torch import Tensor

from mor_trainer.weights import tensor_file
from mor_trainer.weights.published_type import PublishedTensors
from mor_trainer.weights.version_files import MANIFEST, published_versions, weights_folder

_FULL_FILE = "model.safetensors"
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

    ``algorithm``: hash function of its checksums. The tensors must not change meanwhile.
    """
    kind: Literal["full", "lora"] = "full" if adapter is None else "lora"
    tensors = full_tensors(model, trainable) if adapter is None else adapter_tensors(adapter, trainable)
    target = weights_folder(run_folder) / str(version)
    with atomic.folder(target, durable=False, staging=staging) as folder:
        name = _FULL_FILE if adapter is None else _ADAPTER_FILE
        file, infos = tensor_file.write(folder / name, PublishedTensors(tensors, dtype), algorithm)
        files = [file]
        if adapter is not None:
            content = _adapter_config(adapter)
            (folder / _ADAPTER_CONFIG).write_bytes(content)
            found = {algorithm: checksum(content, algorithm)}
            files.append(WeightsFile(name=_ADAPTER_CONFIG, bytes=len(content), **found))
        manifest = WeightsManifest(run=run, version=version, base=base, kind=kind, files=tuple(files), tensors=infos)
        (folder / MANIFEST).write_bytes(seal(manifest.model_dump_json(exclude_none=True).encode()))
    versions = [weights_folder(run_folder) / str(v) for v in published_versions(run_folder)]
    atomic.keep_newest(versions, keep, staging=staging)
    return manifest


def _adapter_config(adapter: Any) -> bytes:
    config = adapter.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    config["inference_mode"] = True

    def plain(value: Any) -> Any:
        return sorted(value) if isinstance(value, set) else str(value)

    return json.dumps(config, default=plain, indent=1).encode()
