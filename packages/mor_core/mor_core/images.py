"""Decoding of untrusted images: bounded in bytes and in pixels, converted to RGB."""

from __future__ import annotations

import hashlib
import io
import warnings

from PIL import Image, UnidentifiedImageError

from mor_core.errors import Invalid, TooLarge

MAX_BYTES = 32 << 20
"""Largest encoded image, bytes: more than a camera's photograph has as JPEG."""
MAX_PIXELS = 64 << 20
"""Largest decoded image, pixels: 192 MiB as RGB."""
_SHOWN_CHARACTERS = 200
"""Length up to which a message quotes a decoder's."""
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
            warnings.simplefilter("ignore")  # of odd metadata and of sizes, which are checked here
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            image.load()
            return _on_white(image)
    except Image.DecompressionBombError as error:  # Pillow itself raises it for sizes far over the limit
        raise TooLarge(
            f"the image is too large ({error}), at most {max_pixels} pixels are read; scale it down"
        ) from error
    except UnidentifiedImageError as error:
        raise Invalid(f"not a readable image; send one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise anything on broken bytes: struct.error, ValueError, MemoryError
        reason = f"{type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
        raise Invalid(f"not a readable image ({reason}); send one of {', '.join(FORMATS)}") from error


def media_type(content: bytes) -> str:
    """Return the media type of an image that ``decode`` accepts; the bytes are not decoded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        return image.get_format_mimetype() or "image/png"


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")
