"""Picture features of image-text-to-text models for several prompts at once."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from mor_core.picture_features import PictureFeatures, divide_features, encode_pictures
from mor_core.processed_prompt import ProcessedPrompt, joined_picture_inputs

ENCODED_TOGETHER = 8
"""Contexts encoded at a time; on CPUs more gain nothing."""
_VALUES_TOGETHER = 1 << 20
"""Maximum pixel values encoded at a time: larger pictures use the CPU fully alone, and take memory."""


class VisionFeatures:
    """Encoder of the pictures of several prompts."""

    def __init__(self, model: Any) -> None:
        self._model = model
        names = ("image_token_id", "image_token_index")
        known = (getattr(model.config, name, None) for name in names)
        self._placeholder = int(next((token for token in known if token is not None), -1))

    def encode(self, prompts: Sequence[ProcessedPrompt], device: torch.device) -> list[PictureFeatures]:
        """Encode the pictures of each prompt; prompts whose pictures have the same sizes, a few at a time."""
        by_sizes: dict[Hashable, list[int]] = {}
        for index, prompt in enumerate(prompts):
            _, *sizes = prompt.pictures_key
            by_sizes.setdefault(tuple(sizes), []).append(index)
        found: dict[int, PictureFeatures] = {}
        for indices in by_sizes.values():
            values = sum(value.numel() for value in prompts[indices[0]].picture_inputs.values())
            together = max(1, min(ENCODED_TOGETHER, _VALUES_TOGETHER // values))
            for start in range(0, len(indices), together):
                chunk = indices[start : start + together]
                found.update(zip(chunk, self._encode([prompts[index] for index in chunk], device), strict=True))
        return [found[index] for index in range(len(prompts))]

    def _encode(self, prompts: Sequence[ProcessedPrompt], device: torch.device) -> list[PictureFeatures]:
        features = encode_pictures(self._model, joined_picture_inputs(prompts, device))
        if len(prompts) == 1:
            return [features]
        placeholders = sum(prompt.token_ids.count(self._placeholder) for prompt in prompts)
        # Some models drop crops that look like padding; only encoding one by one shows whose they are.
        divided = divide_features(features, len(prompts)) if placeholders == features.rows else None
        return divided or [self._encode([prompt], device)[0] for prompt in prompts]
