"""Noise that the self-test puts into a checkpoint's tensors or into an adapter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def perturbed(tensor: Tensor, name: str, seed: int) -> Tensor:
    """Return the tensor plus noise of about its own magnitude. The noise depends on ``name`` and ``seed`` only.

    A tensor without negative values keeps none: of variances, as a batch norm has them, the root is taken.
    """
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(number)
    values = tensor.float()
    noise = torch.randn(values.shape, generator=generator)
    # Half of the tensor's root mean square moves every output; 0.02 moves tensors that are zero, such as new biases.
    noisy = values + noise * (0.5 * values.square().mean().sqrt() + 0.02)
    return (noisy if bool((values < 0).any()) else noisy.abs()).to(tensor.dtype)


def write_noise_adapter(folder: Path, modules: Mapping[str, tuple[int, ...]], rank: int, seed: int) -> None:
    """Write a PEFT adapter of noise that changes the output of every module.

    ``modules``: weight shapes ``(out, in)`` by module name.
    """
    tensors = {}
    generator = torch.Generator().manual_seed(seed)
    for name, (width_out, width_in) in modules.items():
        a = torch.randn((rank, width_in), generator=generator) / width_in**0.5
        tensors[f"base_model.model.{name}.lora_A.weight"] = a
        tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn((width_out, rank), generator=generator)
    leaves = sorted({name.rpartition(".")[2] for name in modules})
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": leaves, "bias": "none"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
