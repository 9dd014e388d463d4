"""Guarded decoding of images from elsewhere: bounded in bytes and in pixels, converted to RGB."""

from __future__ import annotations

import hashlib
import io
import warnings

from PIL import Image, UnidentifiedImageError

from mor_core.errors import Invalid, TooLarge

MAX_BYTES = 32 << 20
MAX_PIXELS = 64 << 20
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The first frame of an encoded image, as RGB on white where it was transparent.

    Raises:
        TooLarge: over ``max_bytes`` encoded or ``max_pixels`` decoded. The size is read from the header, before
            decoding.
        Invalid: not an image of ``FORMATS``, or cut short.
    """
    if len(content) > max_bytes:
        raise TooLarge(f"image has {len(content)} bytes, at most {max_bytes} are read; scale it down")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise TooLarge(
                    f"image has {image.width}x{image.height} pixels, at most {max_pixels} are decoded; scale it down"
                )
            image.load()
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise Invalid(f"not a readable image ({', '.join(FORMATS)}): {error}") from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
