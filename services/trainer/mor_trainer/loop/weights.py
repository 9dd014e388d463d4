"""Publishing a version of the policy: the trained tensors in a folder of their own, with a checksum for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mor_core.wire import TensorInfo, WeightsFile, WeightsManifest
from safetensors import torch as safetensors
from torch import Tensor

from mor_trainer import atomic
from mor_trainer.loop.published import MANIFEST, published, weights_folder

_FULL_FILE = "model.safetensors"
_ADAPTER_FILE = "adapter_model.safetensors"
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.bfloat16: "BF16", torch.float16: "F16"}


def full_tensors(model: Any, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors by the names that ``save_pretrained`` gives them, which loaders know.

    transformers renames parts of some classes when it loads them (``model.language_model.…`` is
    ``model.…`` in a Qwen2.5-VL checkpoint); the same rules are applied backwards here.
    """
    from transformers.core_model_loading import revert_weight_conversion

    detached = {name: tensor.detach() for name, tensor in trainable.items()}
    renamed: dict[str, Tensor] = revert_weight_conversion(model, detached)
    return {name: tensor.cpu().contiguous() for name, tensor in renamed.items()}


def adapter_tensors(adapter: Any, trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The trained tensors, which are those of a PEFT adapter, by the names of its file."""
    from peft import get_peft_model_state_dict

    named = {f"base_model.model.{name}": tensor for name, tensor in trainable.items()}
    state: dict[str, Tensor] = get_peft_model_state_dict(adapter, state_dict=named)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def publish(
    run_folder: Path,
    run: str,
    version: int,
    base: str,
    *,
    model: Any,
    adapter: Any | None,
    trainable: Mapping[str, Tensor],
    keep: int,
) -> WeightsManifest:
    """Write a version and delete those before the last ``keep``."""
    kind: Literal["full", "lora"] = "full" if adapter is None else "lora"
    tensors = full_tensors(model, trainable) if adapter is None else adapter_tensors(adapter, trainable)
    content = safetensors.save(tensors, metadata={"format": "pt"})
    files = {_FULL_FILE if adapter is None else _ADAPTER_FILE: content}
    if adapter is not None:
        files["adapter_config.json"] = _adapter_config(adapter)
    with ThreadPoolExecutor(2) as pool:  # hashlib lets other threads run
        file_hashes = {name: pool.submit(_sha256, data) for name, data in files.items()}
        tensor_infos = {name: pool.submit(_info, tensor) for name, tensor in tensors.items()}
        manifest = WeightsManifest(
            run=run,
            version=version,
            base=base,
            kind=kind,
            files=tuple(
                WeightsFile(name=name, bytes=len(data), sha256=file_hashes[name].result())
                for name, data in files.items()
            ),
            tensors={name: info.result() for name, info in tensor_infos.items()},
        )
    with atomic.folder(weights_folder(run_folder) / str(version), durable=False) as folder:
        for name, data in files.items():
            (folder / name).write_bytes(data)
        (folder / MANIFEST).write_text(manifest.model_dump_json())
    atomic.keep_newest([weights_folder(run_folder) / str(v) for v in published(run_folder)], keep)
    return manifest


def _adapter_config(adapter: Any) -> bytes:
    config = adapter.peft_config["default"].to_dict()
    config["target_modules"] = sorted(config["target_modules"])
    config["inference_mode"] = True
    return json.dumps(config, default=str, indent=1).encode()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _info(tensor: Tensor) -> TensorInfo:
    raw: np.ndarray[Any, Any] = tensor.reshape(-1).view(torch.uint8).numpy()
    return TensorInfo(
        dtype=_DTYPES[tensor.dtype], shape=tuple(tensor.shape), sha256=hashlib.sha256(raw.data).hexdigest()
    )
