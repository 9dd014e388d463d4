"""Small pictures of sample prompts, so that whoever looks at a sample sees what was asked about."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping

from mor_core import images as guarded
from PIL import Image

_SIDE = 192
_QUALITY = 80


def thumbnail(content: bytes) -> bytes:
    """A JPEG of at most 192 x 192 pixels.

    Raises:
        Invalid, TooLarge: no picture that may be decoded.
    """
    image = guarded.decode(content)
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()


def encoded(images: Mapping[str, bytes]) -> dict[str, str]:
    """Thumbnails by the hash of the whole picture, base64."""
    return {digest: base64.b64encode(thumbnail(content)).decode() for digest, content in images.items()}
