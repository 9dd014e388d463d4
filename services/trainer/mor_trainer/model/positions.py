"""Rotary positions of a prompt's tokens, as its model computes them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Int
from mor_core.processed_prompt import ProcessedPrompt
from torch import Tensor


def rotary_positions(model: Any, prompt: ProcessedPrompt) -> Int[Tensor, "axes prompt"]:
    """Return the position of each token: one axis that counts the tokens, or three for time, height and width.

    Three in multimodal rotary embeddings (Qwen2-VL, arXiv 2409.12191, section 2.1). A response continues, on every
    axis, after the largest position of its prompt.
    """
    counted = torch.arange(len(prompt.token_ids))
    rope_index = getattr(model.base_model, "get_rope_index", None)
    if rope_index is None:
        return counted[None]
    known = inspect.signature(rope_index).parameters
    grids = {name: value for name, value in prompt.picture_inputs.items() if name in known}
    types = {name: value[None] for name, value in prompt.token_inputs.items() if name in known}
    if not types or not grids:
        return counted.expand(3, -1)
    positions: Tensor = rope_index(torch.tensor([prompt.token_ids]), **types, **grids)[0]
    return positions[:, 0]
