"""Picture features of image-text-to-text models, computed apart from the decoder so that they can be kept."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

ENCODED_TOGETHER = 8
"""Contexts that go through a tower at once: on processors more gain nothing."""
_VALUES_TOGETHER = 1 << 20
"""Most pixel values of them: larger pictures keep a tower busy alone, and take memory."""


@dataclass(frozen=True)
class Features:
    """What the vision tower and its projection make of the pictures of one context."""

    pictures: tuple[Float[Tensor, ...], ...] | Float[Tensor, "crops places hidden"]
    """Features that replace the placeholders; one tensor for all crops, or one for each picture, as the model likes."""
    deepstack: tuple[Float[Tensor, "tokens hidden"], ...] = ()
    """Features that are added in deeper layers (Qwen3-VL)."""

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (*self.pictures, *self.deepstack))


class VisionFeatures:
    """``get_image_features`` of a model, in the form that its ``mm_encoder_outputs`` argument takes."""

    INPUTS: ClassVar = frozenset({"pixel_values", "pixel_attention_mask", "image_sizes"})
    """What a processor returns for the vision tower alone."""
    _ARGUMENTS: ClassVar = (*sorted(INPUTS), "image_grid_thw")

    def __init__(self, model: Any) -> None:
        self._model = model
        names = ("image_token_id", "image_token_index")
        known = (getattr(model.config, name, None) for name in names)
        self._placeholder = int(next((token for token in known if token is not None), -1))

    def encode(self, contexts: Sequence[dict[str, Tensor]], device: torch.device) -> list[Features]:
        """Features of the pictures of each context, for which the processor's output is given.

        Those whose pictures have the same shapes go through the tower together, a few small ones at a time.
        """
        alike: dict[Hashable, list[int]] = {}
        for index, context in enumerate(contexts):
            shapes = tuple(tuple(context[name].shape) for name in self._ARGUMENTS if name in context)
            alike.setdefault(shapes, []).append(index)
        found: dict[int, Features] = {}
        for indices in alike.values():
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
            # Some models leave out crops that look like padding: whose they were, only one by one can tell.
            return [self._encode([context], device)[0] for context in contexts]
        # Copies, so that none keeps the others' memory.
        layers = [[part.clone() for part in torch.split(layer, places)] for layer in deepstack]
        if isinstance(pooled, Tensor):
            a_row = pooled[0, ..., 0].numel()
            pictures: list[Any] = [part.clone() for part in torch.split(pooled, [count // a_row for count in places])]
        else:
            each = len(pooled) // len(contexts)
            copies = [picture.clone() for picture in pooled]
            pictures = [tuple(copies[start : start + each]) for start in range(0, len(copies), each)]
        return [Features(shown, tuple(layer[row] for layer in layers)) for row, shown in enumerate(pictures)]

    @staticmethod
    def merge(contexts: Sequence[Features | None]) -> dict[str, Any] | None:
        """The argument for a batch of contexts, in their order; ``None`` when none of them has a picture."""
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
