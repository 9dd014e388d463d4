"""Kernels of experts that vLLM builds again when their weights are swapped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def rebuilt_kernels(model: nn.Module) -> Iterator[None]:
    """Build the kernels of those experts again whose weights are loaded meanwhile; the others keep theirs.

    On CPUs a kernel reads packed weights, and vLLM packs them only when it builds the kernel: experts whose weights
    were swapped would compute with unpacked ones. On other devices vLLM converts the weights at each swap.
    """
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        yield
        return
    methods: list[Any] = [getattr(module, "quant_method", None) for module in model.modules()]
    former = {method: method.moe_kernel for method in methods if getattr(method, "moe_kernel", None) is not None}
    for method in former:
        method.moe_kernel = None
    try:
        yield
    finally:
        for method, kernel in former.items():
            if method.moe_kernel is None:
                method.moe_kernel = kernel
