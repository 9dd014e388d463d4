"""Layers of a language model that low-rank adapters adapt, the same for trained policies and reward models."""

from __future__ import annotations

import re
from typing import Any

_ROUTERS = frozenset({"gate", "router"})
"""Names of the linear layers that choose experts; adapters on them would move tokens between experts."""
_OUTPUT = "lm_head"
_NUMBERS = re.compile(r"\.\d+(?=\.|$)")


def adaptable_layers(language_model: Any) -> list[str]:
    """Return the names of its linear layers, except those that choose experts, weigh one, or predict tokens."""
    from torch import nn

    return [
        name
        for name, module in language_model.named_modules()
        if isinstance(module, nn.Linear)
        and module.out_features > 1
        and name.rpartition(".")[2] not in _ROUTERS | {_OUTPUT}
    ]


def is_expert_router(tensor: str) -> bool:
    """Return whether a tensor, by its name in a checkpoint, belongs to a layer that chooses experts."""
    return tensor.rpartition(".")[0].rpartition(".")[2] in _ROUTERS


def kinds(names: list[str]) -> list[str]:
    """Return the last two parts of layers' names, each pair once, without the numbers of layers."""
    return sorted({".".join(_NUMBERS.sub("", name).split(".")[-2:]) for name in names})


def unadapted_weights(language_model: Any, adapted: list[str]) -> list[str]:
    """Return the kinds of matrices that adapters on these layers leave as they are, such as those of fused experts."""
    from torch import nn

    reached = {f"{name}.weight" for name in adapted}
    embeddings = {f"{n}.weight" for n, module in language_model.named_modules() if isinstance(module, nn.Embedding)}
    matrices = [name for name, parameter in language_model.named_parameters() if parameter.dim() > 1]
    return kinds([name.removesuffix(".weight") for name in matrices if name not in reached | embeddings])
