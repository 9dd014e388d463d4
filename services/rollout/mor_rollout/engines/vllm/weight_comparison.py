"""Comparison of a module's weights with expected tensors, by value or by the product with fixed vectors.

A weight may exist only packed for a kernel. The module's product with fixed vectors shows its values nevertheless.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Largest relative difference of two products that rounding explains, by number format."""
_TF32_TOLERANCE = 4e-3
"""The same for float32 on CUDA, where kernels may round to TF32's ten bits."""


class ReceivedTensors:
    """Hashes of the tensors of a weight transfer, and the values that a module is compared with.

    The tensors themselves are not kept.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        """``dtype``: the number format in which the engine computes."""
        self._dtype = dtype
        self.hashes: dict[str, str] = {}
        """SHA-256 of each tensor, by name."""
        self._expected: dict[str, Tensor] = {}
        """Product of each matrix, values of any other tensor."""

    def record(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Record every tensor and yield it unchanged."""
        for name, tensor in weights:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.hashes[name] = hashlib.sha256(content.data).hexdigest()
            converted = tensor.detach().to(self._dtype)
            self._expected[name] = product(converted) if converted.dim() > 1 else converted.clone()
            yield name, tensor

    def matches(self, module: Any, name: str, actual: Tensor, parts: list[str]) -> bool:
        """Return whether a module's parameter ``name``, ``actual``, is made of the received tensors ``parts``."""
        expected = torch.cat([self._expected[part] for part in parts], dim=-1)
        if expected.dim() == 1:
            return torch.equal(actual.to(expected), expected)
        if name == "weight" and isinstance(module, LinearBase | ParallelLMHead):
            width = module.input_size if isinstance(module, LinearBase) else module.embedding_dim
            held = module_product(module, width)
        else:
            held = product(actual)
        return are_close(held[:, : expected.shape[1]], expected, self._dtype, actual.device)


def matches_tensor(module: Any, name: str, actual: Tensor, expected: Tensor) -> bool:
    """Return whether a module's parameter ``name``, ``actual``, is ``expected``."""
    if name == "weight" and isinstance(module, LinearBase | ParallelLMHead):
        dtype = _number_format(module)
        held = module_product(module, expected.shape[1])[:, : expected.shape[0]]
        return are_close(held, product(expected.to(dtype)), dtype, module.weight.device)
    rows = expected.shape[0] if expected.dim() else 0
    values = actual[:rows] if actual.dim() and actual.shape[0] > rows else actual  # vocabularies are padded
    wanted = expected.to(device=values.device, dtype=values.dtype)
    return values.shape == wanted.shape and bool(torch.equal(values, wanted))


def fixed_vectors(width: int, dtype: torch.dtype) -> Tensor:
    """Return the vectors that weights are multiplied with, ``[2, width]``."""
    return torch.randn((2, width), generator=torch.Generator().manual_seed(0)).to(dtype)


def product(weight: Tensor) -> Tensor:
    """Multiply a weight ``[out, …]`` with the fixed vectors: ``[2, out]`` in float32."""
    flat = weight.reshape(weight.shape[0], -1)
    return fixed_vectors(flat.shape[1], weight.dtype).float().to(weight.device) @ flat.float().T


def module_product(module: Any, width: int) -> Tensor:
    """Compute the same product by the module itself, whose weight may exist only packed."""
    vectors = fixed_vectors(width, _number_format(module)).to(module.weight.device)
    result: Tensor = module.quant_method.apply(module, vectors, None)
    return result.float()


def _number_format(module: Any) -> torch.dtype:
    dtype: torch.dtype = module.params_dtype if hasattr(module, "params_dtype") else module.weight.dtype
    return dtype


def are_close(held: Tensor, expected: Tensor, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether two products differ by rounding only."""
    held, expected = held.float().cpu(), expected.float().cpu()
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    if device.type == "cuda":
        tolerance = max(tolerance, _TF32_TOLERANCE)
    # 1e-7 is float32's resolution, for products that are zero.
    return bool((held - expected).norm() <= tolerance * expected.norm() + 1e-7)


def repack_heads(model: nn.Module) -> None:
    """Pack the language-model heads again, as each has a packed copy apart from the embedding that it is tied to."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
