"""Pictures in the shapes in which programs have them, as encoded bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from mor_core import images
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe_failure
from mor_core.plain_files import read_plain_file
from PIL import Image

from mor_client.given_arguments import WrongArgument, check_fields, is_array, kind_of


class PixelArray(Protocol):
    """Array of NumPy, which the SDK does not need itself."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...


Picture = bytes | str | Path | Image.Image | Mapping[str, Any] | PixelArray
"""Encoded bytes, a data URI, a file, an image of Pillow, a cell ``{"bytes", "path"}`` of Parquet, or an array."""
_CELL = ("bytes", "path", "image")
_SHAPES = "(height, width), (height, width, 3) or (height, width, 4)"


def picture_bytes(cell: Any) -> bytes:
    """Return the encoded bytes of a picture.

    Raises:
        Invalid: it is none, or its file cannot be read.
    """
    if isinstance(cell, Image.Image):
        content = io.BytesIO()
        cell.save(content, "PNG")
        return content.getvalue()
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if is_array(cell):
        return picture_bytes(_image_of(cell))
    if isinstance(cell, Mapping):
        return picture_bytes(_given(cell))
    if isinstance(cell, str) and cell.startswith(("data:", "http://", "https://")):
        return images.bytes_of_url(cell)
    if isinstance(cell, str | Path):
        return _file_bytes(cell)
    raise WrongArgument(
        f"images: got {kind_of(cell)}, wanted a picture; give bytes, a file, a data URI, an image of Pillow or an array"
    )


def _given(cell: Mapping[str, Any]) -> Any:
    """Return the picture of a cell of Parquet.

    Raises:
        Invalid: it has none, or another key.
    """
    check_fields("images", cell, _CELL)
    given = next((cell[name] for name in _CELL if cell.get(name) is not None), None)
    if given is None:
        raise Invalid("images: got a dict without a picture; give its 'bytes', or the 'path' of its file")
    return given


def _file_bytes(name: str | Path) -> bytes:
    """Return the content of a picture's file. Data sets of others name files, too, and nothing else may be sent on.

    Raises:
        Invalid: it cannot be read, or is no picture.
    """
    try:
        content = read_plain_file(Path(str(name).removeprefix("file://")).resolve(), images.MAX_BYTES)
        images.pixels(content)
    except (OSError, ValueError, MorError) as error:
        reason = describe_failure(error)
        raise Invalid(f"images: {str(name)[:80]!r} cannot be read ({reason}); give a picture or its file") from error
    return content


def _image_of(array: Any) -> Image.Image:
    """Return an array of NumPy as an image.

    Raises:
        Invalid: it has another type or shape than pixels have.
    """
    if str(array.dtype) != "uint8" or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise Invalid(
            f"images: got an array of {array.dtype} of shape {tuple(array.shape)}, wanted uint8 of shape {_SHAPES}; "
            "scale its values to 0 to 255 and transpose it"
        )
    return Image.fromarray(array)
