"""Decoding of untrusted images: bounded in bytes and in pixels, converted to RGB."""

from __future__ import annotations

import hashlib
import io
import warnings

from PIL import Image, UnidentifiedImageError

from mor_core.errors import Invalid, TooLarge
from mor_core.failures import describe_failure

MAX_BYTES = 32 << 20
"""Largest encoded image, bytes: more than a camera's photograph has as JPEG."""
MAX_PIXELS = 64 << 20
"""Largest decoded image, pixels: 192 MiB as RGB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def sha256(content: bytes) -> str:
    """Return the hash by which messages name an image."""
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image, as RGB on white where it is transparent.

    Raises:
        TooLarge: the image has over ``max_bytes`` encoded or ``max_pixels`` decoded. The size is read from the
            header, before decoding.
        Invalid: it is not an image of ``FORMATS``, or truncated.
    """
    if len(content) > max_bytes:
        raise TooLarge(f"the image has {len(content)} bytes, at most {max_bytes} are read; scale it down")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise TooLarge(
                    f"the image has {image.width}x{image.height} pixels, at most {max_pixels} are read; scale it down"
                )
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Invalid(f"not a readable image ({describe_failure(error)}); send one of {', '.join(FORMATS)}") from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
