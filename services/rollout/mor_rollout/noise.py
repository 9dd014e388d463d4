"""The self-test's perturbation of a checkpoint."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def perturbed(tensor: Tensor, name: str, seed: int) -> Tensor:
    """The tensor with noise of about its own size, always the same for a name and a seed."""
    number = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(number)
    values = tensor.float()
    noise = torch.randn(values.shape, generator=generator)
    return (values + noise * (0.5 * values.square().mean().sqrt() + 0.02)).to(tensor.dtype)
