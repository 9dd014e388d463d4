"""Decoding of untrusted images: bounded in bytes, in pixels and in work, converted to RGB."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from mor_core.errors import Invalid, MorError, TooLarge
from mor_core.failures import describe_failure

MAX_BYTES = 32 << 20
"""Largest encoded image, bytes: more than a camera's photograph has as JPEG."""
MAX_PIXELS = 64 << 20
"""Largest decoded image, pixels: 192 MiB as RGB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MOST_SCANS = 100
"""Scans of a progressive JPEG, ten times what encoders write: a scan of few bytes costs a pass over all pixels."""
_START_OF_SCAN = b"\xff\xda"


def sha256(content: bytes) -> str:
    """Return the hash by which messages name an image."""
    return hashlib.sha256(content).hexdigest()


def pixels(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> int:
    """Return the number of pixels that an image's header states, without decoding it.

    Raises:
        TooLarge, Invalid: as ``decode``.
    """
    with _reading():
        image = _open(content, max_bytes, max_pixels)
        return image.width * image.height


def decode(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the first frame of an image, as RGB on white where it is transparent.

    Raises:
        TooLarge: the image has over ``max_bytes`` encoded or ``max_pixels`` decoded. The size is read from the
            header, before decoding.
        Invalid: it is not an image of ``FORMATS``, or truncated.
    """
    with _reading():
        image = _open(content, max_bytes, max_pixels)
        image.load()
        if image.width * image.height > max_pixels:  # a frame may be larger than the header's canvas
            raise _too_many(image, max_pixels)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            rgba = image.convert("RGBA")
            white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
            return Image.alpha_composite(white, rgba).convert("RGB")
        return image.convert("RGB")


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever the image library raises into an error of the image's sender."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and of sizes, which are checked here
            yield
    except MorError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, for sizes far over ours
        raise TooLarge("the image has too many pixels; scale it down") from error
    except UnidentifiedImageError as error:  # its message has nothing but the address of an object
        raise Invalid(f"not a readable image; send one of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, IndexError and others
        raise Invalid(f"not a readable image ({describe_failure(error)}); send one of {', '.join(FORMATS)}") from error


def _open(content: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    if len(content) > max_bytes:
        raise TooLarge(f"the image has {len(content)} bytes, at most {max_bytes} are read; scale it down")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise _too_many(image, max_pixels)
    if image.format == "JPEG" and content.count(_START_OF_SCAN) > _MOST_SCANS:
        raise Invalid(f"the JPEG has over {_MOST_SCANS} scans; encode it again")
    return image


def _too_many(image: Image.Image, max_pixels: int) -> TooLarge:
    return TooLarge(f"the image has {image.width}x{image.height} pixels, at most {max_pixels} are read; scale it down")


def media_type(content: bytes) -> str:
    """Return the media type of an image that ``decode`` accepts; the bytes are not decoded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        return image.get_format_mimetype() or "image/png"
