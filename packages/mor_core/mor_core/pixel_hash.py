"""The identity of processed pixels: both ends of a rollout hash what their processor made of the images and compare."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any


def pixel_sha256(blocks: Iterable[Any]) -> str | None:
    """SHA-256 of ``pixel_values``: the little-endian float32 bytes of each block, contiguous, one after the other.

    ``blocks`` are arrays or CPU tensors in the order in which the images are shown: the processor's ``pixel_values``
    alone, or an engine's share for each image. Shapes are not hashed, because engines cut the same values into other
    blocks. Without blocks the hash is ``None``: the prompt has no image.
    """
    import numpy as np

    digest = hashlib.sha256()
    empty = True
    for block in blocks:
        digest.update(np.ascontiguousarray(np.asarray(block, dtype="<f4")).tobytes())
        empty = False
    return None if empty else digest.hexdigest()
