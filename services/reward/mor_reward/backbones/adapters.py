"""Low-rank adapters (Hu et al. 2021) by PEFT on a decoder that stays part of a larger model."""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn


def add(decoder: nn.Module, rank: int) -> None:
    """Put adapters of ``rank`` on every linear layer of ``decoder``; only they stay trainable."""
    names = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names), decoder)
    for name, parameter in decoder.named_parameters():
        parameter.requires_grad_("lora_" in name)


def fold(decoder: nn.Module) -> None:
    """Add the adapters to the weights and put the plain layers back."""
    adapted = [(name, module) for name, module in decoder.named_modules() if isinstance(module, LoraLayer)]
    for name, module in adapted:
        module.merge(safe_merge=True)
        parent, _, child = name.rpartition(".")
        setattr(decoder.get_submodule(parent), child, module.get_base_layer())
