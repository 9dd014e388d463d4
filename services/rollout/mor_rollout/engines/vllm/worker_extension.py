"""Code that runs inside vLLM's workers: in-place weight swaps, their verification, and the ban of forbidden tokens.

vLLM imports this module by its name (``worker_extension_cls`` and ``logits_processors`` in ``arguments.py``). The
service itself never does.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from vllm.config import ModelConfig, VllmConfig, set_current_vllm_config
from vllm.lora.utils import parse_fine_tuned_lora_name
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from mor_rollout.engines.self_test_noise import perturbed
from mor_rollout.engines.vllm.expert_kernels import rebuilt_kernels
from mor_rollout.engines.vllm.tensor_names import TensorNameMap
from mor_rollout.engines.vllm.weight_comparison import ReceivedTensors, matches_tensor, repack_heads

FORBIDDEN = "mor_forbidden_token_ids"
_RELOAD_LOGGER = "vllm.model_executor.model_loader.reload.layerwise"


class ForbidTokens(LogitsProcessor):  # type: ignore[misc]
    """Removal of forbidden token ids from every request's distribution, see ``mor_core.sampling``."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        ids = vllm_config.additional_config[FORBIDDEN]
        self._ids = torch.tensor(ids, dtype=torch.long, device=device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        return

    def apply(self, logits: Tensor) -> Tensor:
        return logits.index_fill_(1, self._ids[self._ids < logits.shape[1]], float("-inf"))


class _ModelRunner(Protocol):
    """The part of vLLM's model runner that is used here."""

    model_config: ModelConfig
    lora_manager: Any

    def get_model(self) -> nn.Module: ...


class WeightsExtension:
    """Methods that vLLM mixes into its worker class. The service calls them by ``collective_rpc``.

    ``sources`` lists a checkpoint's tensors as ``[name, file]``. With ``noise``, a seed, each tensor is perturbed.
    """

    model_runner: _ModelRunner
    vllm_config: VllmConfig
    start_weight_update: Callable[[], None]
    finish_weight_update: Callable[[], None]
    _mor_received: ReceivedTensors
    _mor_kernels: ExitStack

    def mor_vision_tensors(self, names: list[str]) -> list[str]:
        """Return those of ``names`` that may lie outside the language model, so that encoder outputs depend on them."""
        model: Any = self.model_runner.get_model()
        mapping = model.get_mm_mapping().language_model if hasattr(model, "get_mm_mapping") else []
        language = (*(prefix.rstrip(".") + "." for prefix in mapping), "lm_head.")
        engine_name = self._mor_names(names).engine_name
        return [name for name in names if not engine_name(name).startswith(language)]

    def mor_dropped_biases(self, names: list[str]) -> list[str]:
        """Return the biases among ``names`` that the model has no parameter for, although it has the weight's.

        vLLM skips them without a word if the configuration does not state them.
        """
        mapping = self._mor_names(names)
        placed: set[str] = set()
        for path, module in self.model_runner.get_model().named_modules():
            for name, _ in module.named_parameters(recurse=False):
                placed.update(mapping.parts(path.removesuffix(".base_layer"), name))
        return [
            name
            for name in names
            if name.endswith(".bias") and name not in placed and f"{name.removesuffix('bias')}weight" in placed
        ]

    def _mor_names(self, names: list[str]) -> TensorNameMap:
        config = self.vllm_config.model_config.hf_config
        # Checkpoints state it in the whole configuration, in the language model's, or in both.
        tied = any(getattr(part, "tie_word_embeddings", False) for part in (config, config.get_text_config()))
        return TensorNameMap(self.model_runner.get_model(), names, tied=tied)

    def mor_load(self, sources: list[list[str]], noise: int | None) -> None:
        """Swap the given tensors in place and keep all others. All parts of a fused tensor must be given."""
        model: Any = self.model_runner.get_model()
        with (
            torch.no_grad(),
            set_current_vllm_config(self.vllm_config),
            _without_warnings(_RELOAD_LOGGER),
            rebuilt_kernels(model),
        ):
            initialize_layerwise_reload(model)
            try:
                model.load_weights(_tensors(sources, noise))
            finally:
                finalize_layerwise_reload(model, self.model_runner.model_config)
            repack_heads(model)

    def mor_verify(self, sources: list[list[str]], noise: int | None) -> dict[str, Any]:
        """Compare every module with the tensors that it should hold.

        Linear layers and the head are compared by products, because their weights may exist only packed; other
        parameters are compared by value.
        """
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {"verified": [], "mismatched": []}
        tensors = _CheckpointTensors(sources, noise)

        def matches(module: Any, name: str, actual: Tensor, parts: list[str]) -> bool:
            return matches_tensor(module, name, actual, torch.cat([tensors[part] for part in parts]))

        return self._mor_compare([name for name, _ in sources], matches)

    def _mor_compare(
        self, tensors: list[str], matches: Callable[[Any, str, Tensor, list[str]], bool]
    ) -> dict[str, Any]:
        """Apply ``matches`` to every parameter that is made of some of ``tensors``."""
        names = self._mor_names(tensors)
        verified: set[str] = set()
        mismatched: list[str] = []
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            for path, module in self.model_runner.get_model().named_modules():
                for name, actual in module.named_parameters(recurse=False):
                    parts = names.parts(path.removesuffix(".base_layer"), name)
                    if parts and matches(module, name, actual, parts):
                        verified.update(parts)
                    elif parts:
                        mismatched.append(f"{path}.{name}")
        return {"verified": sorted(verified), "mismatched": mismatched}

    def mor_verify_adapter(self, folder: str, adapter_id: int) -> dict[str, Any]:
        """Compare each layer's adapter with the one in ``folder``. Layers that it leaves out must hold zeros."""
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {"verified": [], "mismatched": []}
        manager = self.model_runner.lora_manager._adapter_manager
        slot = manager.lora_index_to_id.index(adapter_id)
        expected = _Adapter(Path(folder), getattr(manager.model, "hf_to_vllm_mapper", None))
        verified: list[str] = []
        mismatched: list[str] = []
        for path, layer in manager.modules.items():
            if not isinstance(getattr(layer, "lora_a_stacked", None), tuple):  # not a linear map
                continue
            parts = manager.packed_modules.get(path, [path])
            stacks = zip(parts, layer.lora_a_stacked, layer.lora_b_stacked, strict=True)
            if all(expected.equals(part, a[slot, 0], b[slot, 0]) for part, a, b in stacks):
                verified += [name for part in parts for name in expected.names(part)]
            else:
                mismatched.append(path)
        return {"verified": verified, "mismatched": mismatched}

    def mor_begin_transfer(self) -> None:
        """Begin vLLM's own weight update, and record every tensor that it loads until ``mor_end_transfer``."""
        model: Any = self.model_runner.get_model()
        received = self._mor_received = ReceivedTensors(self.vllm_config.model_config.dtype)
        load = type(model).load_weights
        model.load_weights = lambda weights: load(model, received.record(weights))
        self._mor_kernels = ExitStack()
        self._mor_kernels.enter_context(rebuilt_kernels(model))
        self.start_weight_update()

    def mor_end_transfer(self) -> dict[str, Any]:
        """Finish the update. Return the hashes of the received tensors, and compare the modules with them."""
        received = self._mor_received
        model: Any = self.model_runner.get_model()
        del model.load_weights
        with torch.no_grad(), set_current_vllm_config(self.vllm_config):
            self.finish_weight_update()
            self._mor_kernels.close()
            repack_heads(model)
        if self.vllm_config.parallel_config.tensor_parallel_size > 1:
            return {"received": received.hashes, "verified": [], "mismatched": []}
        return {"received": received.hashes, **self._mor_compare(list(received.hashes), received.matches)}


class _Adapter:
    """Factors of a PEFT adapter, by the engine's module names."""

    def __init__(self, folder: Path, mapper: Any) -> None:
        config = json.loads((folder / "adapter_config.json").read_text())
        rank = config["r"]
        self._scaling = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
        self._names: dict[tuple[str, bool], str] = {}
        self._tensors: dict[str, Tensor] = {}
        renames = mapper.get_rename_mapper() if mapper is not None else None
        with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                self._names[parse_fine_tuned_lora_name(name, renames)] = name
                self._tensors[name] = opened.get_tensor(name)

    def names(self, module: str) -> list[str]:
        """Return the file's tensors for a module."""
        return [self._names[key] for key in ((module, True), (module, False)) if key in self._names]

    def equals(self, module: str, held_a: Tensor, held_b: Tensor) -> bool:
        """Return whether a layer holds the module's factors: ``held_a`` ``[rank, in]``, ``held_b`` ``[out, rank]``,
        scaled."""
        a, b = (self._tensors.get(self._names.get((module, is_a), "")) for is_a in (True, False))
        return _holds(held_a, a) and _holds(held_b, None if b is None else b.to(held_b) * self._scaling)


def _holds(held: Tensor, wanted: Tensor | None) -> bool:
    """Return whether ``held`` is ``wanted`` padded with zeros."""
    padded = torch.zeros_like(held)
    if wanted is not None:
        padded[: wanted.shape[0], : wanted.shape[1]] = wanted.to(held)
    return bool(torch.equal(held, padded))


class _CheckpointTensors:
    """Tensors of a checkpoint by name, read on access."""

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
    tensors = _CheckpointTensors(sources, noise)
    return ((name, tensors[name]) for name, _ in sources)


@contextmanager
def _without_warnings(name: str) -> Iterator[None]:
    """Suppress a logger's warnings: a partial reload leaves modules out on purpose."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
