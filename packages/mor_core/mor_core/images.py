"""The one decoder of untrusted images: bounded in bytes, in pixels and in work, converted to upright 8-bit RGB.

====================  =================================================================================================
orientation           applied, as EXIF states it; an unreadable EXIF block counts as upright
several frames        the first one, as of an animation or of a file with pages
transparency          on white
palette, CMYK, YCbCr  converted; inverted CMYK of Adobe's programs as these mean it
16-bit greyscale      black is 0, white the top of the smallest of 8, 10, 12, 14 and 16 bits that holds all pixels
other deep greyscale  32 bits or signed: from its darkest to its brightest pixel
float greyscale       from 0 to 1; with values outside, from its darkest to its brightest pixel; black where not finite
other 16-bit images   their upper 8 bits: colour, and greyscale with an alpha channel
colour profiles       ignored: the numbers are taken as sRGB, as vision towers were trained
other metadata        ignored; text or a profile beyond the limits of the PNG reader is an error
====================  =================================================================================================
"""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, UnidentifiedImageError

from mor_core.errors import Invalid, MorError, TooLarge
from mor_core.failures import describe_failure
from mor_core.grey_depth import is_deep_grey, mask_of, to_8_bits

MAX_BYTES = 32 << 20
"""Largest encoded image, bytes, in every file and service: more than a camera's photograph has as JPEG."""
MAX_PIXELS = 64 << 20
"""Largest decoded image, pixels: 192 MiB as RGB."""
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
_MOST_SCANS = 100
"""Scans of a progressive JPEG, ten times what encoders write: a scan of few bytes costs a pass over all pixels."""
_START_OF_SCAN = b"\xff\xda"
_ORIENTATION = 0x0112
"""Tag of EXIF; the values 2 to 8 are those of ``_UPRIGHT``."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_OVER_PNG_LIMIT = ("MAX_TEXT_CHUNK", "Too much memory used in text chunks")
"""Parts of the messages by which Pillow's PNG reader reports a text or profile over its limits; it has no error type
for them."""


def sha256(content: bytes) -> str:
    """Return the hash by which messages name an image."""
    return hashlib.sha256(content).hexdigest()


def bytes_of_url(url: str) -> bytes:
    """Return the encoded image in a data URI, or in plain base64, as OpenAI's shapes carry it.

    Raises:
        Invalid: it is an address, which is not fetched, or not base64.
    """
    if url.startswith(("http://", "https://", "file:")):
        raise Invalid("image_url: got a URL, and URLs are not fetched; send the image as a data URI")
    encoded = url.partition(",")[2] if url.startswith("data:") else url
    try:
        return base64.b64decode(encoded, validate=True)
    except ValueError as error:
        raise Invalid(
            f"image_url: neither a base64 data URI nor base64 ({describe_failure(error)}); send the image as a data URI"
        ) from error


def pixels(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> int:
    """Return the number of pixels that an image's header states, without decoding it.

    Raises:
        TooLarge, Invalid: as ``decode``.
    """
    with _reading():
        image = _open(content, max_bytes, max_pixels)
        return image.width * image.height


def decode(content: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode an image to upright 8-bit RGB, by the rules at the top of this module.

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
        orientation = _orientation(image)
        rgb = _deep_grey_to_rgb(image) if is_deep_grey(image) else _to_rgb(image)
        return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of a loaded image; 1, upright, if it has none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # whatever the parser of metadata raises, the pixels are there
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    grey = to_8_bits(image)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one value of a 16-bit PNG that is transparent
        grey.paste(255, mask=mask_of(image, transparent))
    return grey.convert("RGB")


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
    except ValueError as error:
        if any(limit in str(error) for limit in _OVER_PNG_LIMIT):
            raise Invalid(
                "not a readable image: its text or colour profile is over the limits of the PNG reader; "
                "save it without metadata"
            ) from error
        raise _unreadable(error) from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, IndexError and others
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> Invalid:
    return Invalid(f"not a readable image ({describe_failure(error)}); send one of {', '.join(FORMATS)}")


def _open(content: bytes, max_bytes: int, max_pixels: int) -> Image.Image:
    if len(content) > max_bytes:
        raise TooLarge(f"the image has {len(content)} bytes, at most {max_bytes} are read; scale it down")
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if image.width * image.height > max_pixels:
        raise _too_many(image, max_pixels)
    if image.format in ("JPEG", "MPO") and content.count(_START_OF_SCAN) > _MOST_SCANS:
        raise Invalid(f"the JPEG has over {_MOST_SCANS} scans; encode it again")
    return image


def _too_many(image: Image.Image, max_pixels: int) -> TooLarge:
    return TooLarge(f"the image has {image.width}x{image.height} pixels, at most {max_pixels} are read; scale it down")


def media_type(content: bytes) -> str:
    """Return the media type of an image that ``decode`` accepts; the bytes are not decoded again."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        kind = "JPEG" if image.format == "MPO" else image.format  # an MPO is a JPEG with further pictures behind it
        return Image.MIME.get(kind or "", "image/png")
