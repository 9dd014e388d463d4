"""Low-rank adapters (Hu et al. 2021), by PEFT, on a decoder inside a larger model."""

from __future__ import annotations

from mor_core.adapted_layers import adaptable_layers
from mor_core.errors import Invalid
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def add_adapters(decoder: nn.Module, rank: int) -> None:
    """Add adapters of ``rank`` to the linear layers of ``decoder`` and make only them trainable.

    Raises:
        Invalid: it has none.
    """
    names = adaptable_layers(decoder)
    if not names:
        raise Invalid("the decoder has no linear layer that an adapter could adapt; train it in full (lora_rank 0)")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), decoder)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merge_adapters(decoder: nn.Module) -> None:
    """Merge the adapters into the weights and restore the plain layers."""
    adapted = {name: module for name, module in decoder.named_modules() if isinstance(module, LoraLayer)}
    for module in adapted.values():
        module.merge(safe_merge=True)
    for name, module in adapted.items():
        parent, _, child = name.rpartition(".")
        if parent not in adapted:  # tensors of experts are adapted by layers inside each other
            setattr(decoder.get_submodule(parent), child, module.get_base_layer())
