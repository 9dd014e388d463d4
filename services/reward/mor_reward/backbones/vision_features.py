"""Picture features of image-text-to-text models, computed apart from the decoder so that they can be kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling


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

    def encode(self, processed: dict[str, Tensor], device: torch.device) -> Features:
        """Features of the pictures in ``processed``, the processor's output for one context."""
        inputs = {name: processed[name].to(device) for name in self._ARGUMENTS if name in processed}
        output = self._model.get_image_features(**inputs, return_dict=True)
        pooled = output.pooler_output
        deepstack = getattr(output, "deepstack_features", None) or ()
        return Features(pooled if isinstance(pooled, Tensor) else tuple(pooled), tuple(deepstack))

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
