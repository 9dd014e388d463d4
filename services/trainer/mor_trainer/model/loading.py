"""Loading of a checkpoint for training: frozen and trained parameters, adapters, and the reference policy."""

from __future__ import annotations

import copy
from typing import Any, Literal

import structlog
import torch
from mor_core.adapted_layers import adaptable_layers, kinds, unadapted_weights
from mor_core.errors import Invalid
from mor_core.failures import quote_failure
from mor_core.model_family import check_complete, check_family
from mor_core.optimisation import LoraTuning, Tuning
from torch import nn

log = structlog.get_logger(__name__)

_FORMER_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Default that stored runs hold as if it were given, although their model may have only some of these layers."""


def load(checkpoint: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Load model and processor of any Hugging Face image-text-to-text checkpoint, by folder or hub name.

    Raises:
        Invalid: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText

    try:
        processor = check_family(checkpoint)
        model, report = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype, output_loading_info=True)
        check_complete(checkpoint, report)
    except Invalid:
        raise
    except Exception as error:  # a library that reads files of others may raise anything
        raise Invalid(
            f"model {checkpoint!r} cannot be loaded as an image-text-to-text checkpoint: {quote_failure(error)}; give "
            "a folder written by save_pretrained (model and processor) or a hub name that this machine can reach"
        ) from error
    return model.eval(), processor


def autocast_dtype(precision: Literal["auto", "float32", "bfloat16"], device: str) -> torch.dtype | None:
    """Return the type of autocast, if any; see the setting ``precision``."""
    if precision == "auto":
        capable = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if capable else None
    return torch.bfloat16 if precision == "bfloat16" else None


def prepare_cuda() -> None:
    """Set this process's CUDA kernels: no TF32, and no attention by cuDNN.

    No product in float32 is rounded to TF32, not even a convolution's. cuDNN compiles a kernel for each new shape, and
    the shapes of packed groups are new in every step.
    """
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def decoder_of(model: Any) -> nn.Module:
    """Return the language model inside a vision-language model.

    Raises:
        Invalid: the class names no such part.
    """
    decoder = model.get_decoder()
    if not isinstance(decoder, nn.Module) or decoder is model:
        raise Invalid(f"{type(model).__name__} names no part as its language model (get_decoder); use another model")
    return decoder


def tune(model: Any, tuning: Tuning, freeze_vision: bool) -> Any | None:
    """Select the trained parameters: adapters in the language model, or all parameters except the frozen ones.

    Returns the PEFT model around ``model`` when adapters are trained.

    Raises:
        Invalid: the adapters' targets name no layer.
    """
    if isinstance(tuning, LoraTuning):
        return _with_adapters(model, tuning)
    if freeze_vision:
        model.requires_grad_(False)
        decoder_of(model).requires_grad_(True)
        model.get_output_embeddings().requires_grad_(True)
    else:
        model.requires_grad_(True)
    return None


def _with_adapters(model: Any, tuning: LoraTuning) -> Any:
    from peft import LoraConfig, get_peft_model

    decoder = decoder_of(model)
    inside = _targets(decoder, tuning)
    modules = {id(decoder.get_submodule(name)) for name in inside}
    targets = [name for name, module in model.named_modules() if id(module) in modules]
    log.info("adapters", layers=kinds(inside), count=len(inside), without=unadapted_weights(decoder, inside))
    config = LoraConfig(
        r=tuning.rank, lora_alpha=tuning.alpha, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"
    )
    return get_peft_model(model, config)


def _targets(decoder: nn.Module, tuning: LoraTuning) -> list[str]:
    """Return the names, within the language model, of the layers that get an adapter."""
    layers = adaptable_layers(decoder)
    if tuning.targets == "all-linear":
        return layers
    named = {target: [name for name in layers if name.rpartition(".")[2] == target] for target in tuning.targets}
    if unknown := [target for target, found in named.items() if not found and target not in _FORMER_TARGETS]:
        raise Invalid(
            f"tuning.targets {unknown} name no linear layer of the language model; it has"
            f" {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}"
        )
    if not any(named.values()):
        raise Invalid(f"tuning.targets {list(tuning.targets)} name no linear layer; give all-linear, or other names")
    return [name for name in layers if name.rpartition(".")[2] in named]


def frozen_copy(model: Any) -> Any:
    """Return a copy that shares every frozen tensor with ``model`` and has its own trained tensors."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    shared |= {id(buffer): buffer for buffer in model.buffers()}
    return copy.deepcopy(model, shared).requires_grad_(False)


def recompute_activations(model: Any) -> None:
    """Switch on gradient checkpointing. It is active in training mode only, so every dropout is set to zero first."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
