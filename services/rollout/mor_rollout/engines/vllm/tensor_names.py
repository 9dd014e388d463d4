"""Mapping of a checkpoint's tensor names to those of a vLLM model, which renames modules and fuses some of them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

_FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Fused modules of models that declare none themselves."""
_SHARD_ORDER = {"q": 0, "k": 1, "v": 2}
"""Order of the attention projections in a fused tensor."""


class TensorNameMap:
    """Checkpoint tensors by the engine's tensor that they are part of."""

    def __init__(self, model: Any, names: list[str], *, tied: bool) -> None:
        self._tied = tied
        self._mapper = getattr(model, "hf_to_vllm_mapper", None)
        self._fused = {**_FUSED, **getattr(model, "packed_modules_mapping", {})}
        found: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for name in names:
            mapped, shard = self._map(name)
            found[mapped].append((shard, name))
        self._found = {mapped: [name for _, name in sorted(parts)] for mapped, parts in found.items()}

    def engine_name(self, name: str) -> str:
        """Return the engine's name of a checkpoint tensor."""
        return self._map(name)[0]

    def parts(self, module: str, tensor: str) -> list[str]:
        """Return the checkpoint names of the parts of ``module.tensor``, in the order of fusion; empty if unknown."""
        whole = self._found.get(f"{module}.{tensor}")
        if whole is not None:
            return whole
        parent, _, leaf = module.rpartition(".")
        parts = [self._found.get(f"{parent}.{part}.{tensor}") for part in self._fused.get(leaf, ())]
        if parts and all(parts):
            return [name for part in parts if part for name in part]
        if leaf == "lm_head" and self._tied:  # the checkpoint stores a tied head only as the embedding
            for mapped, names in self._found.items():
                if mapped.endswith("embed_tokens.weight"):
                    return names
        return []

    def _map(self, name: str) -> tuple[str, int]:
        if self._mapper is None:
            return name, 0
        result = self._mapper._map_name_with_shard(name)
        if result is None:
            return name, 0
        mapped, shard = result
        return mapped, shard if isinstance(shard, int) else _SHARD_ORDER.get(str(shard), 0)
