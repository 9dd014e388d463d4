"""Prompts of a data set, read from its index when they are asked for."""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, overload

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from mor_core import images
from mor_core.datafiles import ParsedRow, Prompt
from mor_core.datafiles.picture_cells import PictureCells
from mor_core.datafiles.sources.row_files import RowPlace
from mor_core.errors import DataFileError, Invalid, MorError
from mor_core.failures import describe_failure
from mor_core.prompt_index.file_lock import FileLock
from mor_core.prompt_index.fingerprint import file_state
from mor_core.prompt_index.index_builder import MESSAGES
from mor_core.prompt_index.index_file import EXCHANGED, MANIFEST, PICTURES, check_files, connect_to_read

_BLOCK = 1024
"""Rows that are read at a time where a whole column is read."""

T = TypeVar("T")


class _StoredPicture(NamedTuple):
    """Row of the table of pictures."""

    sha256: Annotated[bytes, Field(min_length=32, max_length=32)]
    name: str | None
    copied: Literal[0, 1]
    start: Annotated[int, Field(ge=0)]
    size: Annotated[int, Field(ge=0, le=images.MAX_BYTES)]


_Only = Annotated[list[T], Field(min_length=1, max_length=1)]
_STRICT = ConfigDict(strict=True)
_ROOT: TypeAdapter[list[tuple[bytes]]] = TypeAdapter(_Only[tuple[bytes]], config=_STRICT)
_COUNT: TypeAdapter[list[tuple[int]]] = TypeAdapter(_Only[tuple[int]], config=_STRICT)
_UNUSABLE = TypeAdapter(list[tuple[bytes, str]], config=_STRICT)
_PATHS = TypeAdapter(list[tuple[bytes]], config=_STRICT)
_ROW: TypeAdapter[list[tuple[str, str | None, int, int, str]]] = TypeAdapter(
    _Only[tuple[str, str | None, int, int, str]], config=_STRICT
)
_PLACE: TypeAdapter[list[tuple[int, int]]] = TypeAdapter(_Only[tuple[int, int]], config=_STRICT)
_PICTURES = TypeAdapter(list[_StoredPicture], config=_STRICT)
_IDS = TypeAdapter(list[tuple[str]], config=_STRICT)
_DOMAINS = TypeAdapter(list[tuple[str | None]], config=_STRICT)
_CONTENTS = TypeAdapter(list[tuple[str, str | None, str | None]], config=_STRICT)
_PROBLEMS = TypeAdapter(list[tuple[int, int, str, str]], config=_STRICT)


class PromptSet(Sequence[Prompt]):
    """Prompts of one data set, in its order; equal to what ``read_prompts`` returns.

    A prompt is read at each access, with its pictures, whose hashes are compared with those that were indexed. May be
    used by several threads, and sent to other processes of the machine.
    """

    def __init__(self, folder: Path) -> None:
        """Open an index.

        Raises:
            FileNotFoundError: there is none.
            Invalid: it is damaged.
        """
        self.folder = folder
        lock = FileLock.acquire(folder / MANIFEST, shared=True)
        if lock is None:
            raise FileNotFoundError(f"{folder} is being deleted")
        manifest = check_files(folder)
        self._database = connect_to_read(folder)
        self._copies = os.open(folder / PICTURES, os.O_RDONLY)
        self.close = weakref.finalize(self, _close, self._database, self._copies, lock)
        self._reading = threading.Lock()
        self._size, self._bad = manifest.prompts, manifest.problems
        self.rows_sha256 = manifest.rows_sha256
        """Hash of what the prompts say and show, in their order."""
        files = self._rows(_PATHS, "SELECT path FROM files ORDER BY number")
        self._files = [Path(os.fsdecode(path)) for (path,) in files]
        [(self._unusable,)] = self._rows(_COUNT, "SELECT count(*) FROM unusable")
        [(root,)] = self._rows(_ROOT, "SELECT path FROM root")
        self._cells = PictureCells(Path(os.fsdecode(root)))

    @property
    def ids(self) -> Sequence[str]:
        """Ids of the rows, without the rest of them."""
        return _Column(self._size, self._ids)

    @property
    def domains(self) -> Sequence[str | None]:
        return _Column(self._size, self._domains)

    @property
    def problems(self) -> Sequence[ParsedRow[Prompt]]:
        """Rows that were left out, each with its problem."""
        return _Column(self._bad, self._problems)

    def changes(self) -> list[str]:
        """Return what another index would have to consider: a picture that was exchanged, and those that could not be
        used and are others now."""
        found = [EXCHANGED] if (self.folder / EXCHANGED).exists() else []
        for path, state in _Column(self._unusable, self._unusable_pictures):
            if (now := file_state(Path(os.fsdecode(path)))) != state:
                found.append(f"{path!r} {now}")
        return found

    def first_difference(self, former: PromptSet) -> RowPlace | None:
        """Return the place of the first prompt that says or shows something else than in ``former``, if one does."""
        here, there = (_Column(len(one), one._contents) for one in (self, former))
        pairs = enumerate(zip(here, there, strict=False))
        changed = next((row for row, (now, before) in pairs if now != before), None)
        return None if changed is None else self.place(changed)

    def __reduce__(self) -> tuple[type[PromptSet], tuple[Path]]:
        return PromptSet, (self.folder,)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        """Read a prompt, or several.

        Raises:
            DataFileError: a picture is not what it was when the data was indexed, or the index is damaged.
        """
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        [(name, domain, number, line, text)] = self._rows(
            _ROW, "SELECT id, domain, file, line, messages FROM prompts WHERE row = ?", row
        )
        pictures = self._rows(
            _PICTURES, "SELECT sha256, name, copied, start, size FROM pictures WHERE row = ? ORDER BY place", row
        )
        try:
            messages = MESSAGES.validate_json(text, extra="ignore")
        except ValidationError as error:
            raise self._damaged(error) from error
        place = self._place(number, line)
        try:
            shown = {picture.sha256.hex(): self._picture(picture, place.file) for picture in pictures}
        except MorError as error:
            raise DataFileError(place.file, place.line, f"{error} (row {name[:100]!r})") from error
        return Prompt(id=name, messages=messages, images=shown, domain=domain)

    def place(self, row: int) -> RowPlace:
        """Return the place of a prompt in the data."""
        [(number, line)] = self._rows(_PLACE, "SELECT file, line FROM prompts WHERE row = ?", row)
        return self._place(number, line)

    def _picture(self, picture: _StoredPicture, file: Path) -> bytes:
        """Read a picture of a row of ``file``."""
        if picture.copied:
            content = os.pread(self._copies, picture.size, picture.start)
        elif picture.name is not None:
            content = self._cells.file(picture.name, file.parent)
        else:
            content = _span(file, picture.start, picture.size)
        if images.sha256(content) == picture.sha256.hex():
            return content
        if picture.copied:
            raise self._damaged(Invalid(f"{PICTURES} has another picture at {picture.start}"))
        with suppress(OSError):  # a folder that may only be read
            (self.folder / EXCHANGED).touch()
        raise Invalid(
            f"images: {picture.name or file.name:.100} is not what was indexed; put the former picture back, or create "
            "the run again"
        )

    def _place(self, file: int, line: int) -> RowPlace:
        if not 0 <= file < len(self._files):
            raise self._damaged(Invalid(f"a row of file {file}, of {len(self._files)}"))
        return RowPlace(self._files[file], line)

    def _rows(self, parser: TypeAdapter[T], query: str, *values: int) -> T:
        try:
            with self._reading:
                found = self._database.execute(query, values).fetchall()
            return parser.validate_python(found)
        except (sqlite3.Error, ValidationError) as error:
            raise self._damaged(error) from error

    def _ids(self, first: int, count: int) -> list[str]:
        query = "SELECT id FROM prompts WHERE row >= ? ORDER BY row LIMIT ?"
        return [name for (name,) in self._rows(_IDS, query, first, count)]

    def _domains(self, first: int, count: int) -> list[str | None]:
        query = "SELECT domain FROM prompts WHERE row >= ? ORDER BY row LIMIT ?"
        return [domain for (domain,) in self._rows(_DOMAINS, query, first, count)]

    def _contents(self, first: int, count: int) -> list[tuple[str, str | None, str | None]]:
        shown = "SELECT hex(sha256) AS picture FROM pictures WHERE pictures.row = prompts.row ORDER BY place"
        query = (
            f"SELECT messages, domain, (SELECT group_concat(picture) FROM ({shown})) FROM prompts "  # noqa: S608
            "WHERE row >= ? ORDER BY row LIMIT ?"
        )
        return self._rows(_CONTENTS, query, first, count)

    def _problems(self, first: int, count: int) -> list[ParsedRow[Prompt]]:
        query = "SELECT file, line, id, problem FROM problems WHERE row >= ? ORDER BY row LIMIT ?"
        found = self._rows(_PROBLEMS, query, first, count)
        return [ParsedRow(self._place(file, line), name, None, problem) for file, line, name, problem in found]

    def _unusable_pictures(self, first: int, count: int) -> list[tuple[bytes, str]]:
        return self._rows(
            _UNUSABLE, "SELECT path, state FROM unusable WHERE row >= ? ORDER BY row LIMIT ?", first, count
        )

    def _damaged(self, error: Exception) -> Invalid:
        """Return the error for an index that is damaged, after making sure that it is built again."""
        with suppress(OSError):
            (self.folder / MANIFEST).unlink()
        return Invalid(
            f"the index {self.folder} is damaged ({describe_failure(error)}); it is built again at the next start"
        )


class _Column(Sequence[T], Generic[T]):
    """Column of a table, read in blocks."""

    def __init__(self, size: int, read: Callable[[int, int], list[T]]) -> None:
        """``read`` returns a number of values from a row on."""
        self._size = size
        self._read = read

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(self._size))]
        return self._read(range(self._size)[index], 1)[0]

    def __iter__(self) -> Iterator[T]:
        for first in range(0, self._size, _BLOCK):
            yield from self._read(first, _BLOCK)


def _span(file: Path, start: int, size: int) -> bytes:
    try:
        with file.open("rb") as opened:
            return os.pread(opened.fileno(), size, start)
    except OSError as error:
        raise Invalid(f"{file.name} cannot be read ({describe_failure(error)}); put it back") from error


def _close(database: sqlite3.Connection, handle: int, lock: FileLock) -> None:
    database.close()
    os.close(handle)
    lock.release()
