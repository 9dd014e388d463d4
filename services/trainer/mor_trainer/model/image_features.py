"""Image features of a frozen vision tower, computed once for each distinct image."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import Tensor


class ImageFeatures:
    """Features of a prompt's images: ``pooler_output`` of the model's ``get_image_features``.

    Either one tensor ``[images, tokens, width]`` or a sequence of tensors ``[tokens, width]``, one for each image.
    """

    def __init__(self, pooled: Tensor | Sequence[Tensor]) -> None:
        self.pooled = pooled

    @property
    def bytes(self) -> int:
        tensors = [self.pooled] if isinstance(self.pooled, Tensor) else self.pooled
        return sum(tensor.nbytes for tensor in tensors)


def takes_features(model: Any) -> bool:
    """Return whether a model takes features in place of pixel values.

    A model that does not (transformers before 5.18, or custom code) would drop them unseen in its ``**kwargs`` and
    compute without the picture.
    """
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


_FIELDS = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


def features_of(output: Any) -> ImageFeatures | None:
    """Return the features in a ``get_image_features`` output, or ``None`` where they are not enough.

    They are not when the language model needs more of the tower than one set of features (Qwen3-VL's deep stack). Such
    a model takes pixel values each time.
    """
    if set(output.keys()) - _FIELDS or output.pooler_output is None:
        return None
    return ImageFeatures(output.pooler_output)


def joined(features: Sequence[ImageFeatures]) -> Any:
    """Join the features of a batch of prompts, in order, into a model's ``mm_encoder_outputs``."""
    import torch
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    first = features[0].pooled
    pooled: Any
    if isinstance(first, Tensor):
        pooled = torch.cat([item.pooled for item in features if isinstance(item.pooled, Tensor)])
    else:
        pooled = [tensor for item in features for tensor in item.pooled]
    return {"image": BaseModelOutputWithPooling(pooler_output=pooled)}
