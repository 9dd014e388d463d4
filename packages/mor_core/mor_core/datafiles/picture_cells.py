"""Pictures of data files: a file name, a data URI or Parquet's ``{"bytes", "path"}``, checked.

Data files are exchanged and uploaded, so a row may name only files below its data set's folder; ``folder_links`` has
the rule for links there.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mor_core import images as safe_images
from mor_core.datafiles.sources.foreign_files import LONGEST_START, foreign_kind
from mor_core.datafiles.sources.picture_bytes import OriginalPicture, PictureOrigin
from mor_core.errors import Invalid, MorError, TooLarge
from mor_core.failures import describe_failure
from mor_core.folder_links import FolderLinks
from mor_core.image_budget import MOST_BYTES, ImageBudget

_SHOWN_CHARACTERS = 100
"""Length up to which an error quotes a file name, in characters."""
_LONGEST_NAME = 4096
"""Characters of a file name; a longer text may be a picture in base64."""
_FILE_ADDRESS = "file://"
_REMEMBERED = 1 << 16
"""Pictures that are not decoded again when another row has them: 12 MB of hashes, and most sets have fewer."""


class PictureProblem(Invalid):
    """The pictures of a row cannot be used."""

    def __init__(self, problem: str, files: Sequence[Path]) -> None:
        """``files``: those that the row names, of which another content may cure it."""
        super().__init__(problem)
        self.files = files


class PictureCells:
    """Pictures of one data set. None is held, so that memory does not grow with the data."""

    def __init__(self, root: Path) -> None:
        self._links = FolderLinks(root)
        self._decoded: dict[str, None] = {}
        """Hashes of pictures that could be decoded, oldest first."""

    def of_row(self, cells: Any, folder: Path) -> list[tuple[str, bytes]]:
        """Return hash and encoded bytes of each image of a row, after checking that they can be decoded.

        ``folder``: of the row's file, which file names are relative to.

        Raises:
            PictureProblem: a picture cannot be read, or all of them are over the budget of a request.
        """
        if cells is None or cells == "":
            return []
        listed = cells if isinstance(cells, list) else [cells]
        try:
            shown = [self._of(cell, folder) for cell in listed]
            ImageBudget(MOST_BYTES).spend(*dict(shown).values())
        except MorError as error:
            problem = f"images: {error}" if isinstance(error, TooLarge) else str(error)
            named = [folder / name for name in map(_file_name, listed) if name is not None]
            raise PictureProblem(problem, named) from error
        return shown

    def _of(self, cell: Any, folder: Path) -> tuple[str, bytes]:
        name, content = self._content(cell, folder)
        digest = safe_images.sha256(content)
        if digest not in self._decoded:
            if (foreign := foreign_kind(content[:LONGEST_START])) is not None:
                raise Invalid(f"images: {name} is {foreign}")
            try:
                safe_images.decode(content)
            except MorError as error:
                raise Invalid(f"images: {name}: {error}") from error
            self._decoded[digest] = None
            if len(self._decoded) > _REMEMBERED:
                del self._decoded[next(iter(self._decoded))]
        return digest, content

    def _content(self, cell: Any, folder: Path) -> tuple[str, bytes]:
        """Return name and bytes of an image cell."""
        if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
            path = cell.get("path")
            return path[:_SHOWN_CHARACTERS] if isinstance(path, str) else "embedded image", cell["bytes"]
        if isinstance(cell, dict) and cell.get("bytes") is None and isinstance(cell.get("path"), str):
            return self._content(cell["path"], folder)
        if isinstance(cell, dict):
            fields = ", ".join(f"{name}: {type(value).__name__}" for name, value in list(cell.items())[:3])
            raise Invalid(f"images: got {{{fields[:100]}}}; give Parquet's {{bytes: binary, path: string}}")
        if isinstance(cell, bytes):
            return "embedded image", cell
        if not isinstance(cell, str):
            raise Invalid(f"images: got {type(cell).__name__}; give a file name or a data URI")
        if not cell.startswith("data:"):
            return cell[:_SHOWN_CHARACTERS], OriginalPicture.read(self.file(cell, folder), PictureOrigin(cell))
        try:
            return "data URI", base64.b64decode(cell.partition(",")[2], validate=True)
        except ValueError as error:
            raise Invalid(f"images: a data URI is not base64 ({describe_failure(error)}); encode it again") from error

    def file(self, name: str, folder: Path) -> bytes:
        """Read a file that a row names.

        Raises:
            Invalid: it cannot be read, or is not below the data set's folder; this error does not reveal whether it
                exists.
        """
        # A longer one may be a picture in base64 without the prefix of a data URI.
        if name.startswith(("http://", "https://")):
            raise Invalid(f"images: {name[:_SHOWN_CHARACTERS]!r} is an address; download it and give the file's name")
        name = name.removeprefix(_FILE_ADDRESS)
        shown = repr(name) if len(name) <= _SHOWN_CHARACTERS else f"a name of {len(name)} characters"
        try:
            file = (folder / name).resolve()
            allowed = self._links.allow(folder / name, file)
            size = file.stat().st_size if allowed and file.is_file() else None
            content = file.read_bytes() if size is not None and size <= safe_images.MAX_BYTES else None
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise Invalid(f"images: {shown} cannot be read ({reason}); give a file name, or a data URI") from error
        if not allowed:
            raise Invalid(f"images: {shown} is not below the data file's folder; put it there, or give a data URI")
        if size is None:
            raise Invalid(f"images: no file {shown} in the data file's folder; put it there, or give a data URI")
        if content is None:
            raise Invalid(
                f"images: {shown} has {size} bytes, of at most {safe_images.MAX_BYTES}; scale the picture down"
            )
        return content


def _file_name(cell: Any) -> str | None:
    """Return the name of a file that an image cell gives; ``None`` where it holds the picture."""
    if isinstance(cell, dict) and cell.get("bytes") is None:
        cell = cell.get("path")
    if not isinstance(cell, str) or cell.startswith("data:") or len(cell) > _LONGEST_NAME:
        return None
    return cell.removeprefix(_FILE_ADDRESS)
