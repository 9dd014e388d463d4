"""Thumbnails of the pictures of sample prompts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from mor_core import images as guarded
from PIL import Image

_SIDE = 192
"""Pixels of the longer side: legible in the dashboard, and a few kilobytes in an event."""
_QUALITY = 80
"""JPEG quality at which no artefact shows at this size."""


def thumbnail(content: bytes) -> bytes:
    """Make a JPEG of at most 192 x 192 pixels.

    Raises:
        Invalid, TooLarge: no picture that may be decoded.
    """
    image = guarded.decode(content)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def encode_thumbnails(images: Mapping[str, bytes]) -> dict[str, str]:
    """Make a thumbnail of each picture, in base64, by the hash of the whole picture."""
    return {digest: base64.b64encode(thumbnail(content)).decode() for digest, content in images.items()}
