"""Image encoder of the base VLM: DINOv2-S converted to the SigLIP-style encoder of Idefics3 models."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Dinov2Model

WIDTH = 384
"""Width of DINOv2-S."""
PATCH = 14
"""Side of a patch, pixels."""


def siglip_state(dino: Dinov2Model, layers: int, picture_size: int) -> dict[str, Tensor]:
    """Return the state of an ``Idefics3VisionTransformer`` that approximates ``layers`` layers of ``dino``.

    LayerScale is merged into the projection before it, and the position table is resized to the grid of a
    ``picture_size`` square. The only approximation: the class token, which that class does not support, is dropped.
    """
    source = dino.state_dict()
    grid = picture_size // PATCH
    table = source["embeddings.position_embeddings"][:, 1:].reshape(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    table = functional.interpolate(table, (grid, grid), mode="bicubic", align_corners=False)
    state = {
        "embeddings.patch_embedding.weight": source["embeddings.patch_embeddings.projection.weight"],
        "embeddings.patch_embedding.bias": source["embeddings.patch_embeddings.projection.bias"],
        "embeddings.position_embedding.weight": table.permute(0, 2, 3, 1).reshape(grid * grid, WIDTH),
    }
    for layer in range(layers):
        old, new = f"encoder.layer.{layer}.", f"encoder.layers.{layer}."
        scales = (source[f"{old}layer_scale1.lambda1"], source[f"{old}layer_scale2.lambda1"])
        for kind in ("weight", "bias"):
            for letter in "qkv":
                state[f"{new}self_attn.{letter}_proj.{kind}"] = source[f"{old}attention.{letter}_proj.{kind}"]
            for index in (1, 2):
                state[f"{new}layer_norm{index}.{kind}"] = source[f"{old}norm{index}.{kind}"]
            state[f"{new}mlp.fc1.{kind}"] = source[f"{old}mlp.fc1.{kind}"]
        folded = (("self_attn.out_proj", "attention.o_proj", scales[0]), ("mlp.fc2", "mlp.fc2", scales[1]))
        for target, origin, scale in folded:
            state[f"{new}{target}.weight"] = source[f"{old}{origin}.weight"] * scale[:, None]
            state[f"{new}{target}.bias"] = source[f"{old}{origin}.bias"] * scale
    state["post_layernorm.weight"] = torch.ones(WIDTH)
    state["post_layernorm.bias"] = torch.zeros(WIDTH)
    return {name: value.detach().clone() for name, value in state.items()}


def standardise(norm: torch.nn.LayerNorm, features: Tensor) -> None:
    """Set ``norm`` so that its outputs have zero mean and unit variance per channel.

    ``features``: (pictures, patches, channels), outputs of ``norm`` while it is still the identity scaling. A small
    language model learns several times faster from standardised channels, and the layer exists anyway.
    """
    flat = features.reshape(-1, features.shape[-1])
    deviation = flat.std(0).clamp_min(1e-3)
    with torch.no_grad():
        norm.weight.copy_(1 / deviation)
        norm.bias.copy_(-flat.mean(0) / deviation)
