"""What runs inside vLLM's worker: in-place weight swaps, the read-back of what is computed with, the token ban.

Imported by vLLM by name (``worker_extension_cls``, ``logits_processors``), never by the service itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from mor_rollout.noise import perturbed
from mor_rollout.vllm_names import NameMap

FORBIDDEN = "mor_forbidden_token_ids"
_RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"
_TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
_TF32_TOLERANCE = 4e-3


class ForbidTokens(LogitsProcessor):  # type: ignore[misc]
    """Takes the forbidden ids out of the distribution of every request, see ``mor_core.sampling``."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        ids = vllm_config.additional_config[FORBIDDEN]
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        return

    def apply(self, logits: Tensor) -> Tensor:
        return logits.index_fill_(1, self._ids[self._ids < logits.shape[1]], float("-inf"))


class WeightsExtension:
    """Methods that vLLM mixes into its worker; the service calls them by ``collective_rpc``.

    ``sources`` lists a checkpoint's tensors as ``[name, file]``. With ``noise`` each tensor is perturbed on its way.
    """

    model_runner: Any
    vllm_config: VllmConfig

    def mor_vision_tensors(self, names: list[str]) -> list[str]:
        """Those of ``names`` that are not known to belong to the language model: encoder outputs may depend on them."""
        model = self.model_runner.get_model()
        mapping = model.get_mm_mapping().language_model if hasattr(model, "get_mm_mapping") else []
        known = (*(prefix.rstrip(".") + "." for prefix in mapping), "lm_head.")
        engine_name = self._mor_names(names).engine_name
        return [name for name in names if not engine_name(name).startswith(known)]

    def _mor_names(self, names: list[str]) -> NameMap:
        text = self.vllm_config.model_config.hf_config.get_text_config()
        return NameMap(self.model_runner.get_model(), names, tied=bool(text.tie_word_embeddings))

    def mor_load(self, sources: list[list[str]], noise: int | None) -> None:
        """Swap the given tensors in place; every fused tensor's parts must be among them. Others stay."""
        model = self.model_runner.get_model()
        with torch.no_grad(), set_current_vllm_config(self.vllm_config), _quiet(_RELOAD_LOGGER):
            initialize_layerwise_reload(model)
            try:
                model.load_weights(_tensors(sources, noise))
            finally:
                finalize_layerwise_reload(model, self.model_runner.model_config)
            for module in model.modules():
                if isinstance(module, ParallelLMHead):  # packed apart from the embedding that it shares its tensor with
                    module.quant_method.process_weights_after_loading(module)

    def mor_verify(self, sources: list[list[str]], noise: int | None) -> dict[str, Any]:
        """Compare every module with the tensors that it should hold.

        Linear layers, the head included, are compared by their product with a fixed vector, because their weights may
        exist only packed; other parameters by value.
        """
        model = self.model_runner.get_model()
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {"verified": [], "mismatched": []}
        tensors = _Lookup(sources, noise)
        names = self._mor_names([name for name, _ in sources])
        verified: set[str] = set()
        mismatched: list[str] = []
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            for path, module in model.named_modules():
                for name, actual in module.named_parameters(recurse=False):
                    parts = names.parts(path.removesuffix(".base_layer"), name)
                    if not parts:
                        continue
                    expected = torch.cat([tensors[part] for part in parts])
                    if _same(module, name, actual, expected):
                        verified.update(parts)
                    else:
                        mismatched.append(f"{path}.{name}")
        return {"verified": sorted(verified), "mismatched": mismatched}


class _Lookup:
    """Tensors of a checkpoint by name, read when asked for."""

    def __init__(self, sources: list[list[str]], noise: int | None) -> None:
        self._files = dict(sources)
        self._noise = noise
        self._open: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Tensor:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt")
        tensor: Tensor = self._open[file].get_tensor(name)
        return tensor if self._noise is None else perturbed(tensor, name, self._noise)


def _tensors(sources: list[list[str]], noise: int | None) -> Iterator[tuple[str, Tensor]]:
    lookup = _Lookup(sources, noise)
    return ((name, lookup[name]) for name, _ in sources)


def _same(module: nn.Module, name: str, actual: Tensor, expected: Tensor) -> bool:
    if name == "weight" and isinstance(module, LinearBase | ParallelLMHead):
        return _same_product(module, expected)
    rows = expected.shape[0] if expected.dim() else 0
    held = actual[:rows] if actual.dim() and actual.shape[0] > rows else actual  # vocabularies are padded
    wanted = expected.to(device=held.device, dtype=held.dtype)
    return held.shape == wanted.shape and bool(torch.equal(held, wanted))


def _same_product(module: Any, expected: Tensor) -> bool:
    dtype = module.params_dtype if hasattr(module, "params_dtype") else module.weight.dtype
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn((2, expected.shape[1]), generator=generator).to(dtype)
    device = module.weight.device
    actual = module.quant_method.apply(module, probe.to(device), None)[:, : expected.shape[0]].float().cpu()
    wanted = probe.float() @ expected.to(dtype).float().T
    tolerance = _TOLERANCE.get(dtype, _TOLERANCE[torch.bfloat16])
    if device.type == "cuda":
        tolerance = max(tolerance, _TF32_TOLERANCE)
    return bool((actual - wanted).norm() <= tolerance * wanted.norm() + 1e-7)


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Without the logger's warnings: a partial reload leaves modules out on purpose."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
