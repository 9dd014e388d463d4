"""Picture features of image-text-to-text models, computed apart from the decoder so that they can be cached."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

ENCODED_TOGETHER = 8
"""Contexts encoded at a time; on CPUs more gain nothing."""
_VALUES_TOGETHER = 1 << 20
"""Maximum pixel values encoded at a time: larger pictures use the CPU fully alone, and take memory."""


@dataclass(frozen=True)
class Features:
    """Output of image encoder and projection for the pictures of one context."""

    pictures: tuple[Float[Tensor, ...], ...] | Float[Tensor, "crops places hidden"]
    """Features for the placeholders: one tensor for all crops or one for each picture, depending on the model."""
    deepstack: tuple[Float[Tensor, "tokens hidden"], ...] = ()
    """Features that deeper layers add (Qwen3-VL)."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.pictures, *self.deepstack))


class VisionFeatures:
    """Caller of a model's ``get_image_features`` that returns the format of its ``mm_encoder_outputs`` argument."""

    INPUTS: ClassVar = frozenset({"pixel_values", "pixel_attention_mask", "image_sizes"})
    """Outputs of a processor that only the image encoder uses."""
    _ARGUMENTS: ClassVar = (*sorted(INPUTS), "image_grid_thw")

    def __init__(self, model: Any) -> None:
        self._model = model
        names = ("image_token_id", "image_token_index")
        known = (getattr(model.config, name, None) for name in names)
        self._placeholder = int(next((token for token in known if token is not None), -1))

    def encode(self, contexts: Sequence[dict[str, Tensor]], device: torch.device) -> list[Features]:
        """Encode the pictures of each context, given as the processor's output.

        Contexts whose pictures have the same shapes are encoded together, a few small ones at a time.
        """
        by_shape: dict[Hashable, list[int]] = {}
        for index, context in enumerate(contexts):
            shapes = tuple(tuple(context[name].shape) for name in self._ARGUMENTS if name in context)
            by_shape.setdefault(shapes, []).append(index)
        found: dict[int, Features] = {}
        for indices in by_shape.values():
            values = contexts[indices[0]]["pixel_values"].numel()
            together = max(1, min(ENCODED_TOGETHER, _VALUES_TOGETHER // values))
            for start in range(0, len(indices), together):
                chunk = indices[start : start + together]
                found.update(zip(chunk, self._encode([contexts[index] for index in chunk], device), strict=True))
        return [found[index] for index in range(len(contexts))]

    def _encode(self, contexts: Sequence[dict[str, Tensor]], device: torch.device) -> list[Features]:
        inputs = {
            name: torch.cat([context[name] for context in contexts]).to(device)
            for name in self._ARGUMENTS
            if name in contexts[0]
        }
        output = self._model.get_image_features(**inputs, return_dict=True)
        pooled = output.pooler_output
        deepstack = tuple(getattr(output, "deepstack_features", None) or ())
        if len(contexts) == 1:
            return [Features(pooled if isinstance(pooled, Tensor) else tuple(pooled), deepstack)]
        places = [int(torch.eq(context["input_ids"], self._placeholder).sum()) for context in contexts]
        if sum(places) != sum(row[..., 0].numel() for row in pooled):
            # Some models drop crops that look like padding; only encoding one by one shows whose they are.
            return [self._encode([context], device)[0] for context in contexts]
        # Copies, so that no context keeps the memory of the others.
        layers = [[part.clone() for part in torch.split(layer, places)] for layer in deepstack]
        if isinstance(pooled, Tensor):
            row_size = pooled[0, ..., 0].numel()
            pictures: list[Any] = [
                part.clone() for part in torch.split(pooled, [count // row_size for count in places])
            ]
        else:
            each = len(pooled) // len(contexts)
            copies = [picture.clone() for picture in pooled]
            pictures = [tuple(copies[start : start + each]) for start in range(0, len(copies), each)]
        return [Features(shown, tuple(layer[row] for layer in layers)) for row, shown in enumerate(pictures)]

    @staticmethod
    def merge(contexts: Sequence[Features | None]) -> dict[str, Any] | None:
        """Return the argument for a batch of contexts, in order; ``None`` if no context has a picture."""
        seen = [features for features in contexts if features is not None]
        if not seen:
            return None
        stacked = [features.pictures for features in seen if isinstance(features.pictures, Tensor)]
        if stacked:
            pooled: Any = torch.cat(stacked)
        else:
            pooled = [picture for features in seen for picture in features.pictures]
        output = BaseModelOutputWithPooling(pooler_output=pooled)
        if seen[0].deepstack:
            output["deepstack_features"] = [
                torch.cat(layer) for layer in zip(*(features.deepstack for features in seen), strict=True)
            ]
        return {"image": output}
