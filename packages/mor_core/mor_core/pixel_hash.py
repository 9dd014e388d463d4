"""Hash of processed pixels, by which the trainer verifies that the engine saw the same pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

PIXEL_FIELDS = ("pixel_values", "pixel_values_videos")
"""Processor outputs that hold pixels, in the order in which they are hashed."""


def pixel_sha256(*outputs: Mapping[str, Any]) -> str | None:
    """Return the SHA-256 of every pixel field, or ``None`` if there is none, as for a prompt without images.

    ``outputs`` is a processor's whole output, or an engine's share of it for each image in the order of the prompt.
    The values are arrays or CPU tensors. For each of ``PIXEL_FIELDS`` the hash covers the little-endian float32 bytes
    of that field in each output. Shapes are not hashed, because engines cut the same values into other blocks.
    """
    import numpy as np

    digest = hashlib.sha256()
    empty = True
    for field in PIXEL_FIELDS:
        for output in outputs:
            if field in output:
                for values in _without_padding(output[field], output.get("image_sizes")):
                    plain = values.float() if hasattr(values, "float") else values  # numpy has no bfloat16
                    digest.update(np.ascontiguousarray(np.asarray(plain, dtype="<f4")).tobytes())
                empty = False
    return None if empty else digest.hexdigest()


def _without_padding(values: Any, sizes: Any) -> list[Any]:
    """Cut images ``[images, channels, height, width]`` to their sizes: a processor pads several, vLLM does not."""
    if sizes is None or values.ndim != 4 or len(sizes) != len(values):
        return [values]
    return [image[:, : int(height), : int(width)] for image, (height, width) in zip(values, sizes, strict=True)]
