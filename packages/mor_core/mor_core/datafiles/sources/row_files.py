"""Rows of a data set, from whatever holds them: a file, a folder, shards, an archive or a name on a hub.

=======================================  ================================================================
JSON lines, or one JSON array            ``.jsonl``, ``.ndjson``, ``.json`` and any other suffix, in UTF-8
Parquet, Arrow                           ``.parquet``, ``.arrow``
WebDataset                               ``.tar``
folder                                   its files of one of these kinds (or those of its ``data/``) in the order of
                                         their names, or the data set that ``save_to_disk`` wrote there
shards                                   a pattern, such as ``data/train-*.parquet``
``hub:OWNER/NAME[:CONFIG][:SPLIT]``      a data set of the Hugging Face hub, split ``train`` by default
=======================================  ================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import has_magic
from pathlib import Path
from typing import Any, BinaryIO

from mor_core.datafiles.sources import arrow_rows, hub_rows, strict_json, tar_samples
from mor_core.datafiles.sources.foreign_files import COMPRESSED, LONGEST_START, foreign_kind
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.printable import visible

RawRow = dict[str, Any] | Invalid
"""Columns of a row, or the reason why it has none."""

_LONGEST_LINE = 128 << 20
"""Bytes of a line: the pictures that a row may have, in base64, and half as much. A file without line breaks would fill
memory."""
_SKIPPED_BYTES = 1 << 20
"""Bytes of a longer line that are skipped at a time."""
_DEEPEST = 64
"""Levels of a row: far more than any layout has, and far from the limit of Python's recursion."""
_SHOWN_FOLDERS = _SHOWN_KEYS = 5
"""Folders, and keys of an object, that an error lists."""
_SHOWN_CHARACTERS = 60
"""Characters of such a key."""
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json"}
"""Files that the library ``datasets`` writes beside a data set's shards, and that hold no rows."""
_TABLES = {".csv", ".tsv"}
_TABLE_ROW = re.compile(rb"[\w\s\"'-]+[,;\t][^{}\[\]:]*\Z")
"""Line of CSV, whatever the file's suffix: names or texts between commas, and nothing of JSON."""
_LONGEST_TABLE_ROW = 1000
"""Bytes of such a line that are looked at."""
_FROM_LATIN_1 = "as by: iconv -f LATIN1 -t UTF-8 OLD > NEW"
"""Command for the most frequent other encoding."""
_SHARD_NUMBER = re.compile(r"[-_.]?\d+(-of-\d+)?$")
"""End of a shard's name, as in ``train-00000-of-00002``."""


@dataclass(frozen=True, slots=True)
class RowPlace:
    """Place of a row: file, and line, row or sample in it, from 1."""

    file: Path
    line: int


@dataclass(frozen=True)
class RowSource:
    """Rows of a data set and the folder that its file names must stay below."""

    root: Path
    files: tuple[Path, ...]
    rows: Iterator[tuple[RowPlace, RawRow]]


def open_rows(path: Path) -> RowSource:
    """Open a data set; see the table of this module.

    Raises:
        Invalid: there is no such data set, or a folder holds several, or a file's name is not UTF-8. The rows raise it
            where a file cannot be read.
    """
    with reading(path):
        source = _opened(path)
    for file in source.files:  # names become ids and are stored as texts
        if not _encodes(str(file)):
            raise Invalid(f"{visible(str(file))}: the name is not UTF-8; rename the file")
    return replace(source, rows=_read(path, source.rows))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Name the data set where a disk fails that it is on, or its files may not be read.

    Raises:
        Invalid: they cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise Invalid(
            f"{path}: cannot be read ({describe_failure(error)}); check its files, their permissions and their disk"
        ) from error


def _read(path: Path, rows: Iterator[tuple[RowPlace, RawRow]]) -> Iterator[tuple[RowPlace, RawRow]]:
    with reading(path):
        yield from rows


def _opened(path: Path) -> RowSource:
    if (name := hub_rows.name_of(path)) is not None:
        return RowSource(hub_rows.cache_folder(), (path,), _numbered(path, hub_rows.read_rows(name)))
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return RowSource(path.parent, (path,), _file_rows(path))
    if has_magic(path.name) and path.parent.is_dir():
        return _shards(path.parent, sorted(found for found in path.parent.glob(path.name) if found.is_file()), path)
    raise Invalid(f"{path}: no such file; give a .jsonl or .parquet file, a folder, a pattern or hub:OWNER/NAME")


def content_files(path: Path) -> tuple[Path, ...]:
    """Return the files on disk that hold the rows of a data set; a data set of the hub is fetched if needed.

    Raises:
        Invalid: as ``open_rows``.
    """
    name = hub_rows.name_of(path)
    return open_rows(path).files if name is None else hub_rows.cached_files(name)


def _folder(folder: Path) -> RowSource:
    if (folder / arrow_rows.SPLITS_FILE).is_file():
        names = sorted(split.name for split in folder.iterdir() if (split / arrow_rows.STATE_FILE).is_file())
        if len(names) != 1:
            raise Invalid(f"{folder} holds the splits {', '.join(names)}; give one of them, as {folder / 'train'}")
        folder = folder / names[0]
    if (folder / arrow_rows.STATE_FILE).is_file():
        return _shards(folder, arrow_rows.saved_files(folder), folder)
    places = [place for place in (folder, folder / "data") if place.is_dir()]
    found = [file for place in places for file in sorted(place.iterdir()) if _may_hold_rows(file)]
    files = _without_descriptions([file for file in found if file.suffix.lower() in _READERS])
    if files:
        _refuse_several(folder, files)
        _refuse_left_out(found, files)
        return _shards(folder, files, folder)
    inner = ", ".join(sorted(inner.name for inner in folder.iterdir() if inner.is_dir())[:_SHOWN_FOLDERS])
    below = f"; or give one of its folders {inner}" if inner else ""
    _refuse_left_out(sorted(folder.iterdir()), [])
    raise Invalid(f"{folder} holds no data file; wanted are {', '.join(_READERS)}{below}")


def _without_descriptions(files: list[Path]) -> list[Path]:
    """Leave out the JSON objects that describe data, as ``stats.json`` beside ``data/train.parquet``."""
    sets = {_set_of(file) for file in files if file.suffix.lower() != ".json"}
    rows = [file for file in files if _set_of(file) in sets or _start_of(file).startswith(b"[")]
    return rows or files


def _refuse_several(folder: Path, files: list[Path]) -> None:
    """Refuse a folder with data files of two kinds or at two places, of which one would be left out in silence.

    Raises:
        Invalid: there are.
    """
    first = files[0]
    kind = first.suffix.lower()
    for file in files:
        if (other := file.suffix.lower()) != kind:
            raise Invalid(f"{folder} holds {kind} and {other} files; give one kind, as '{first.parent / ('*' + kind)}'")
        if file.parent != first.parent:
            raise Invalid(f"{folder} holds {first.name} and {file.relative_to(folder)}; give one of them")


def _refuse_left_out(found: list[Path], files: list[Path]) -> None:
    """Refuse a folder with a shard that would be left out in silence: a compressed one, unless it was unpacked beside
    it, or a table of the same set.

    Raises:
        Invalid: there is one.
    """
    sets = {_set_of(file) for file in files}
    for file in found:
        if file.suffix.lower() in COMPRESSED and file.with_suffix("") not in files:
            raise Invalid(f"{file} is compressed; unpack it, or put it into another folder")
        if file.suffix.lower() in _TABLES and _set_of(file) in sets:
            raise Invalid(f"{file} is a table in text; convert it, or put it into another folder")


def _set_of(file: Path) -> str:
    """Return the name of the data set that a shard belongs to."""
    return _SHARD_NUMBER.sub("", file.stem)


def _may_hold_rows(file: Path) -> bool:
    return file.is_file() and file.name not in _DESCRIPTIONS and not file.name.startswith(".")


def _shards(root: Path, files: list[Path], asked: Path) -> RowSource:
    sets = sorted(set(map(_set_of, files)))
    if not files or len(sets) > 1:
        found = f"the sets {', '.join(sets)}" if sets else "no file"
        example = files[0].parent / f"{sets[-1]}*{files[0].suffix}" if sets else "train-*.parquet"
        raise Invalid(f"{asked} holds {found}; name one set, as '{example}'")
    return RowSource(root, tuple(files), (row for file in files for row in _file_rows(file)))


def check_kind(file: Path) -> None:
    """Check by its first bytes and its name that a file may hold rows.

    Raises:
        Invalid: it cannot; with the cure.
    """
    with file.open("rb") as opened:
        foreign = foreign_kind(opened.read(LONGEST_START), file)
    if foreign is not None:
        raise Invalid(f"{file} is {foreign}")


def _file_rows(file: Path) -> Iterator[tuple[RowPlace, RawRow]]:
    check_kind(file)
    yield from _READERS.get(file.suffix.lower(), _json_lines)(file)


def _numbered(file: Path, rows: Iterator[dict[str, Any]]) -> Iterator[tuple[RowPlace, RawRow]]:
    for number, row in enumerate(rows, 1):
        yield RowPlace(file, number), row


def _json_lines(file: Path) -> Iterator[tuple[RowPlace, RawRow]]:
    with file.open("rb") as opened:
        for number, line in enumerate(_lines(opened), 1):
            if line is None:
                yield RowPlace(file, number), Invalid(f"over {_LONGEST_LINE >> 20} MiB; write one JSON object per line")
                continue
            content = line.removeprefix(_BYTE_ORDER_MARK)  # also at the joint of files that were put together
            if content.strip():
                yield RowPlace(file, number), _parse(content)


def _lines(opened: BinaryIO) -> Iterator[bytes | None]:
    """Yield the lines of a file, and ``None`` for each that is too long to be read."""
    while line := opened.readline(_LONGEST_LINE):
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := opened.readline(_SKIPPED_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _json_file(file: Path) -> Iterator[tuple[RowPlace, RawRow]]:
    """Read a JSON array of rows, or the lines of a file that has the wrong suffix."""
    start = _start_of(file)
    if not start.startswith(b"["):
        if isinstance(_load(start.partition(b"\n")[0]), Invalid) and isinstance(whole := _whole(file), dict):
            keys = ", ".join(repr(str(key)[:_SHOWN_CHARACTERS]) for key in list(whole)[:_SHOWN_KEYS])
            problem = f"one JSON object with {keys}; write an array of rows, or one object per line"
            yield RowPlace(file, 1), Invalid(problem)
        else:
            yield from _json_lines(file)
        return
    rows = _whole(file)
    if isinstance(rows, Invalid):
        yield RowPlace(file, rows.line if isinstance(rows, _BadText) else 1), rows
        return
    for number, row in enumerate(rows, 1):
        yield RowPlace(file, number), _checked(row)


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(1 << 10).removeprefix(_BYTE_ORDER_MARK).lstrip()


def _whole(file: Path) -> Any:
    return _load(file.read_bytes())


def _parse(line: bytes) -> RawRow:
    row = _load(line)
    # Only an escape gives a lone surrogate, and only brackets give depth: most lines need no look at each value.
    if isinstance(row, dict) and b"\\u" not in line and line.count(b"[") + line.count(b"{") <= _DEEPEST:
        return row
    return row if isinstance(row, Invalid) else _checked(row)


class _BadText(Invalid):
    """A JSON text that cannot be read, with the line of it that is wrong."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def _load(content: bytes) -> Any:
    """Return the value of a JSON text, or the reason why it has none."""
    try:
        return strict_json.load(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        place = error.start - before.rfind(b"\n")
        problem = f"not UTF-8 (byte {place} is 0x{byte:02x}); save the file as UTF-8, {_FROM_LATIN_1}"
        return _BadText(problem, before.count(b"\n") + 1)
    except json.JSONDecodeError as error:
        if b"\0" in content:
            return _BadText("not UTF-8 (it has zero bytes, as UTF-16 has); save the file as UTF-8", error.lineno)
        problem = f"not JSON ({error.msg}, column {error.colno}); write one JSON object per line"
        if _TABLE_ROW.match(content[:_LONGEST_TABLE_ROW]):
            problem = f"not JSON but {foreign_kind(b'', Path('OLD.csv'))}"
        return _BadText(problem, error.lineno)
    except strict_json.DuplicateName as error:
        return Invalid(f"the column {str(error)[:80]!r} is given twice in one object; keep one of the two")
    except (ValueError, RecursionError):  # a number of thousands of digits, or a nesting of thousands of levels
        return Invalid("not a row (a number is too long, or values are nested too deeply); write plain columns")


def _checked(row: Any) -> RawRow:
    """Return a row whose texts can be encoded and whose depth is bounded, or the reason why it is none."""
    if not isinstance(row, dict):
        return Invalid(f"got a JSON {type(row).__name__}; write one JSON object per line")
    level: list[Any] = [row]
    for _ in range(_DEEPEST):
        for value in level:
            if isinstance(value, str) and not value.isascii() and not _encodes(value):
                return Invalid("a text has half a character (a lone surrogate, \\ud800 to \\udfff); write it whole")
        level = [inner for value in level if isinstance(value, dict | list) for inner in _inner(value)]
        if not level:
            return row
    return Invalid(f"nested over {_DEEPEST} levels; write plain columns")


def _inner(value: Any) -> list[Any]:
    return [*value, *value.values()] if isinstance(value, dict) else value


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_READERS: dict[str, Callable[[Path], Iterator[tuple[RowPlace, RawRow]]]] = {
    ".parquet": lambda file: _numbered(file, arrow_rows.parquet_rows(file)),
    ".arrow": lambda file: _numbered(file, arrow_rows.arrow_rows(file)),
    ".tar": lambda file: ((RowPlace(file, number), row) for number, row in tar_samples.samples(file, _parse)),
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_file,
}
"""Readers by suffix."""
