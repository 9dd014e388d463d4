"""Builder of an index: one pass over the rows of a data set, in memory that does not grow with them."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import TypeAdapter

from mor_core.datafiles import ParsedRow, Prompt, scan_prompts
from mor_core.datafiles.sources import arrow_rows
from mor_core.datafiles.sources.picture_bytes import OriginalPicture
from mor_core.datafiles.sources.row_files import RowPlace, RowSource, content_files, open_rows
from mor_core.disk_full import DiskFull
from mor_core.errors import Unavailable
from mor_core.failures import describe_failure
from mor_core.prompt_index.fingerprint import file_state
from mor_core.prompt_index.index_file import PICTURES, PROMPTS, TABLES, write_manifest
from mor_core.prompt_index.rows_hash import RowsHash
from mor_core.wire.messages import Messages

MESSAGES: TypeAdapter[Any] = TypeAdapter(Messages)
_BATCH = 256
"""Rows between two reports of progress and looks at the disk; one row at a time is in memory."""
_LOOKUP = "lookup.sqlite3"
_LOOKUP_TABLES = """
CREATE TABLE names (name TEXT PRIMARY KEY, file INTEGER NOT NULL, line INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE copies (sha256 BLOB PRIMARY KEY, start INTEGER NOT NULL) WITHOUT ROWID;
"""
_CACHE_KIB = 32 << 10
"""Pages of a table that are in memory while it is written, KiB."""
_RESERVE_BYTES = 1 << 30
_RESERVE_SHARE = 0.05
"""Part of a disk that stays free for the others who use it: the smaller of the two."""


def build_index(path: Path, columns: str, folder: Path, progress: Callable[[int], None]) -> None:
    """Write the index of a data set into an empty folder. ``progress`` receives the number of rows read so far.

    Raises:
        Invalid: there is no such data set, or ``columns`` is no map.
        Unavailable: the disk has too little room, or cannot be written.
    """
    source = open_rows(path)
    check_room(folder, sum(map(_bytes_of, content_files(path))), path)
    try:
        with (
            _created(folder / PROMPTS, TABLES) as database,
            _created(folder / _LOOKUP, _LOOKUP_TABLES) as lookup,
            (folder / PICTURES).open("wb") as pictures,
        ):
            writer = _IndexWriter(database, lookup, pictures, source)
            rows = scan_prompts(path, columns, writer)
            while batch := writer.write(rows):
                progress(writer.rows)
                if batch == _BATCH:
                    check_room(folder, 0, path)
        (folder / _LOOKUP).unlink()
        write_manifest(folder, path, writer.prompts, writer.problems, writer.hash)
    except (sqlite3.OperationalError, OSError) as error:
        raise Unavailable(
            f"{folder.parent}: the index of {path} cannot be written ({describe_failure(error)}); "
            "make room, or set MOR_INDEX_DIR to another folder"
        ) from error


class _IndexWriter:
    """Writer of the rows of one data set; it also holds the places of their ids for ``scan_prompts``."""

    def __init__(
        self, database: sqlite3.Connection, lookup: sqlite3.Connection, pictures: BinaryIO, source: RowSource
    ) -> None:
        self._database = database
        self._lookup = lookup
        self._pictures = pictures
        self._files = source.files
        self._numbers = {file: number for number, file in enumerate(source.files)}
        self._end = 0
        """Bytes of pictures that are copied."""
        self.hash = RowsHash()
        self.prompts = self.problems = self._unusable = 0
        database.execute("INSERT INTO root VALUES (?)", (os.fsencode(source.root),))
        database.executemany("INSERT INTO files VALUES (?, ?)", enumerate(map(os.fsencode, source.files)))

    @property
    def rows(self) -> int:
        return self.prompts + self.problems

    def get(self, name: str) -> RowPlace | None:
        """Return the place of the row that has an id."""
        found = self._lookup.execute("SELECT file, line FROM names WHERE name = ?", (name,)).fetchone()
        return None if found is None else RowPlace(self._files[found[0]], found[1])

    def __setitem__(self, name: str, place: RowPlace) -> None:
        self._lookup.execute("INSERT INTO names VALUES (?, ?, ?)", (name, self._numbers[place.file], place.line))

    def write(self, rows: Iterator[ParsedRow[Prompt]]) -> int:
        """Write the next rows and return their number, 0 at the end."""
        count = 0
        for row in islice(rows, _BATCH):
            count += 1
            if row.value is None:
                self._write_problem(row)
            else:
                self._write_prompt(row.place, row.value)
        return count

    def _write_problem(self, row: ParsedRow[Prompt]) -> None:
        place = (self._numbers[row.place.file], row.place.line)
        # The name of a file may have bytes that are no text.
        problem = (row.problem or "").encode(errors="replace").decode()
        self._database.execute(
            "INSERT INTO problems VALUES (?, ?, ?, ?, ?)", (self.problems, row.name, *place, problem)
        )
        self.problems += 1
        for picture in row.pictures:
            known = (self._unusable, os.fsencode(picture.absolute()), file_state(picture))
            self._database.execute("INSERT INTO unusable VALUES (?, ?, ?)", known)
            self._unusable += 1

    def _write_prompt(self, place: RowPlace, prompt: Prompt) -> None:
        messages = MESSAGES.dump_json(prompt.messages).decode()
        found = (self.prompts, prompt.id, prompt.domain, self._numbers[place.file], place.line, messages)
        self._database.execute("INSERT INTO prompts VALUES (?, ?, ?, ?, ?, ?)", found)
        self._database.executemany(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (self.prompts, number, bytes.fromhex(digest), *self._located(digest, content))
                for number, (digest, content) in enumerate(prompt.images.items())
            ],
        )
        self.hash.add(prompt)
        self.prompts += 1

    def _located(self, digest: str, content: bytes) -> tuple[str | None, int, int, int]:
        """Return name, copied, start and size of a picture, after copying it where it cannot be read again."""
        if isinstance(content, OriginalPicture):
            return content.origin.name, 0, content.origin.start, len(content)
        key = bytes.fromhex(digest)
        found = self._lookup.execute("SELECT start FROM copies WHERE sha256 = ?", (key,)).fetchone()
        if found is not None:
            return None, 1, found[0], len(content)
        start = self._end
        self._pictures.write(content)
        self._end += len(content)
        self._lookup.execute("INSERT INTO copies VALUES (?, ?)", (key, start))
        return None, 1, start, len(content)


def check_room(folder: Path, needed: int, path: Path) -> None:
    """Check that a disk has room for an index, and keeps some for the others who use it.

    Raises:
        DiskFull: it has not.
    """
    disk = shutil.disk_usage(folder)
    reserve = min(_RESERVE_BYTES, int(_RESERVE_SHARE * disk.total))
    if disk.free < needed + reserve:
        raise DiskFull(
            f"{folder.parent}: {disk.free} bytes are free; the index of {path} needs about {needed} more, and "
            f"{reserve} stay free for others; make room, or set MOR_INDEX_DIR to a folder of another disk"
        )


def _bytes_of(file: Path) -> int:
    """Estimate the bytes that an index needs for a file."""
    suffix = file.suffix.lower()
    if suffix == ".tar":
        return 0  # its pictures stay there
    return arrow_rows.decoded_bytes(file) if suffix == ".parquet" else file.stat().st_size


@contextmanager
def _created(file: Path, tables: str) -> Iterator[sqlite3.Connection]:
    """Create a database in one transaction. A file that is not complete is never used, so there is no journal."""
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.executescript(f"PRAGMA journal_mode = OFF; PRAGMA cache_size = -{_CACHE_KIB}; {tables}")
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")
