"""The worker's part of a weight transfer: weights that a trainer broadcasts, and proof that they are computed with.

Mixed into vLLM's worker with ``mor_rollout.engines.vllm.worker.WeightsExtension``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Relative difference of products that rounding explains."""
_TF32_TOLERANCE = 4e-3


class TransferExtension:
    """Frames vLLM's own ``update_weights``: what comes is hashed on its way into the model, and compared afterwards."""

    model_runner: Any
    vllm_config: VllmConfig
    start_weight_update: Any
    finish_weight_update: Any
    _mor_compare: Any
    _mor_received: Received

    def mor_begin_transfer(self) -> None:
        """From now on, what vLLM loads is told to ``Received``."""
        model = self.model_runner.get_model()
        received = self._mor_received = Received(self.vllm_config.model_config.dtype)
        load = type(model).load_weights
        model.load_weights = lambda weights: load(model, received.passing(weights))
        self.start_weight_update()

    def mor_end_transfer(self) -> dict[str, Any]:
        """Finish the update; hashes of what came, and which modules compute with it."""
        model, received = self.model_runner.get_model(), self._mor_received
        del model.load_weights
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            self.finish_weight_update()
            repack_heads(model)
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {"received": received.hashes, "verified": [], "mismatched": []}
        return {"received": received.hashes, **self._mor_compare(list(received.hashes), received.same)}


class Received:
    """Of each tensor that came its hash, and its product with a fixed vector: the tensor itself is not kept."""

    def __init__(self, dtype: torch.dtype) -> None:
        """``dtype``: what the engine computes in."""
        self._dtype = dtype
        self.hashes: dict[str, str] = {}
        self._marks: dict[str, Tensor] = {}
        """Of a matrix its product, of anything else its values."""

    def passing(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Hands on what it takes note of."""
        for name, tensor in weights:
            content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            self.hashes[name] = hashlib.sha256(content.data).hexdigest()
            held = tensor.detach().to(self._dtype)
            self._marks[name] = product(held) if held.dim() > 1 else held.clone()
            yield name, tensor

    def same(self, module: Any, name: str, actual: Tensor, parts: list[str]) -> bool:
        """Whether a module computes with the parts that came."""
        wanted = torch.cat([self._marks[part] for part in parts], dim=-1)
        if wanted.dim() == 1:
            return torch.equal(actual.to(wanted), wanted)
        if name == "weight" and isinstance(module, LinearBase | ParallelLMHead):
            width = module.input_size if isinstance(module, LinearBase) else module.embedding_dim
            held = module_product(module, width)
        else:
            held = product(actual)
        return close(held[:, : wanted.shape[1]], wanted, self._dtype, actual.device)


def probe(width: int, dtype: torch.dtype) -> Tensor:
    """The fixed vectors, ``[2, width]``."""
    return torch.randn((2, width), generator=torch.Generator().manual_seed(0)).to(dtype)


def product(weight: Tensor) -> Tensor:
    """``[2, out]`` in float32 of a weight ``[out, …]``."""
    flat = weight.reshape(weight.shape[0], -1)
    return probe(flat.shape[1], weight.dtype).float().to(weight.device) @ flat.float().T


def module_product(module: Any, width: int) -> Tensor:
    """The same as the module itself computes it, whose weight may exist only packed."""
    dtype = module.params_dtype if hasattr(module, "params_dtype") else module.weight.dtype
    result: Tensor = module.quant_method.apply(module, probe(width, dtype).to(module.weight.device), None)
    return result.float()


def close(held: Tensor, wanted: Tensor, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether two products differ by rounding only."""
    held, wanted = held.float().cpu(), wanted.float().cpu()
    tolerance = TOLERANCE.get(dtype, TOLERANCE[torch.bfloat16])
    if device.type == "cuda":
        tolerance = max(tolerance, _TF32_TOLERANCE)
    return bool((held - wanted).norm() <= tolerance * wanted.norm() + 1e-7)


def repack_heads(model: nn.Module) -> None:
    """A head is packed apart from the embedding that it shares its tensor with."""
    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
