"""Bytes of a picture that know where they lie, so that they need not be kept to be read again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureOrigin:
    """Place of a picture outside the columns of its row."""

    name: str | None
    """File, as the row names it; ``None`` is the file that the row is from."""
    start: int = 0
    """First byte of the picture in that file."""


class OriginalPicture(bytes):
    """Bytes of a picture that can be read again from ``origin``; a picture in a row's column is plain ``bytes``."""

    origin: PictureOrigin

    @classmethod
    def read(cls, content: bytes, origin: PictureOrigin) -> OriginalPicture:
        picture = cls(content)
        picture.origin = origin
        return picture
