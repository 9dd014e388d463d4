"""Readers of the data files ``mor.prompts/1`` and ``mor.prefs/1``: JSONL or Parquet with the columns of TRL.

=========  ==========================================================================  ==========  =========
column     content                                                                      prompts/1   prefs/1
=========  ==========================================================================  ==========  =========
prompt     messages (OpenAI or TRL chat format) or a string, which is one user message  required    required
images     list of files below the data file's folder, data URIs, Parquet image cells   optional    optional
chosen     the better response: a string, or one assistant message                      -           required
rejected   the worse response, in the same form                                         -           required
id         name of the row, unique in the file; by default its line number              optional    optional
domain     label for reports; never an input of the router                              optional    optional
=========  ==========================================================================  ==========  =========

A message's image parts (``{"type": "image"}``) take the row's images in order. With a string prompt, or if no message
has an image part, the images precede the first user text. Any other column is an error, so that a misspelt column is
not ignored.

Data files are exchanged and uploaded: a file may name only files below its own folder, after resolution of links.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from mor_core import images as safe_images
from mor_core.errors import DataFileError, Invalid, MorError
from mor_core.failures import describe, describe_failure
from mor_core.wire import ImagePart, Message, TextPart

_COLUMNS = {"prompt", "images", "id", "domain"}
_PREFERENCE_COLUMNS = _COLUMNS | {"chosen", "rejected"}
_SHOWN_PROBLEMS = 10
"""Invalid lines that an error lists."""
_SHOWN_CHARACTERS = 100
"""Length up to which an error quotes a file name, in characters."""

Row = TypeVar("Row")


@dataclass(frozen=True)
class Prompt:
    """Row of ``mor.prompts/1``. ``messages`` name images by hash, ``images`` holds their encoded bytes."""

    id: str
    messages: tuple[Message, ...]
    images: dict[str, bytes] = field(repr=False)
    domain: str | None


@dataclass(frozen=True)
class Preference:
    """Row of ``mor.prefs/1``: for ``prompt``, ``chosen`` is preferred to ``rejected``."""

    prompt: Prompt
    chosen: str
    rejected: str


def read_prompts(path: Path) -> list[Prompt]:
    """Read all rows of a ``mor.prompts/1`` file.

    Raises:
        DataFileError: names the first invalid line and the cure; the message lists further invalid lines.
    """
    return _read(path, _COLUMNS, _prompt)


def read_preferences(path: Path) -> list[Preference]:
    """Read all rows of a ``mor.prefs/1`` file.

    Raises:
        DataFileError: names the first invalid line and the cure; the message lists further invalid lines.
    """
    return _read(path, _PREFERENCE_COLUMNS, _preference)


class _Pictures:
    """Pictures of one data file; each is decoded and stored once for all rows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, bytes] = {}

    def of(self, cell: Any) -> tuple[str, bytes]:
        """Return hash and encoded bytes of an image cell, after checking that it can be decoded."""
        name, content = _content(cell, self._folder)
        digest = safe_images.sha256(content)
        if digest not in self._known:
            try:
                safe_images.decode(content)
            except MorError as error:
                raise Invalid(f"images: {name}: {error}") from error
            self._known[digest] = content
        return digest, self._known[digest]


def _read(path: Path, columns: set[str], parse: Callable[[dict[str, Any], _Pictures, int], Row]) -> list[Row]:
    pictures = _Pictures(path.parent)
    parsed: list[Row] = []
    problems: list[tuple[int, str]] = []
    ids: dict[str, int] = {}
    for line, row in _rows(path):
        try:
            if isinstance(row, Invalid):
                raise row
            _check_columns(row, columns)
            name = str(row.get("id") or line)
            if name in ids:
                raise Invalid(f"id {name!r} is also used in line {ids[name]}; give each row its own id")
            ids[name] = line
            parsed.append(parse(row, pictures, line))
        except MorError as error:
            problems.append((line, str(error)))
    if problems:
        line, first = problems[0]
        others = ", ".join(str(number) for number, _ in problems[1:_SHOWN_PROBLEMS])
        more = (
            f" ({len(problems) - 1} more invalid lines: {others}{', ...' if len(problems) > _SHOWN_PROBLEMS else ''})"
        )
        raise DataFileError(path, line, first + (more if others else ""))
    if not parsed:
        raise DataFileError(path, 1, "the file has no rows; write one JSON object per line")
    return parsed


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    """Yield line number and columns of each row, or the error for a line that is not a JSON object."""
    if not path.is_file():
        raise Invalid(f"{path}: no such file; give the path of a .jsonl or .parquet file")
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except json.JSONDecodeError as error:
                yield number, Invalid(f"not JSON ({error.msg}, column {error.colno}); write one JSON object per line")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                yield number, Invalid(f"got a JSON {type(row).__name__}; write one JSON object per line")


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | Invalid]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise Invalid(f"{path}: reading Parquet needs pyarrow; install mor-core[parquet]") from error
    number = 0
    for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
        for row in batch.to_pylist():
            number += 1
            yield number, {name: value for name, value in row.items() if value is not None}


def _check_columns(row: dict[str, Any], columns: set[str]) -> None:
    unknown = sorted(set(row) - columns)
    if unknown:
        raise Invalid(f"unknown column {unknown[0]!r}; the columns are {', '.join(sorted(columns))}")
    for required in sorted(columns & {"prompt", "chosen", "rejected"}):
        if required not in row:
            raise Invalid(f"column {required!r} is missing; the columns are {', '.join(sorted(columns))}")


def _prompt(row: dict[str, Any], pictures: _Pictures, line: int) -> Prompt:
    cells = row.get("images") or []
    if not isinstance(cells, list):
        raise Invalid(f"images: got {type(cells).__name__}; give a list of files")
    shown = [pictures.of(cell) for cell in cells]
    domain = row.get("domain")
    if not isinstance(domain, str | None):
        raise Invalid(f"domain: got {type(domain).__name__}; give a string")
    return Prompt(
        id=str(row.get("id") or line),
        messages=_messages(row["prompt"], [digest for digest, _ in shown]),
        images=dict(shown),
        domain=domain,
    )


def _preference(row: dict[str, Any], pictures: _Pictures, line: int) -> Preference:
    chosen, rejected = _response(row["chosen"], "chosen"), _response(row["rejected"], "rejected")
    if chosen == rejected:
        raise Invalid("chosen and rejected are the same text; drop the row")
    return Preference(_prompt(row, pictures, line), chosen, rejected)


def _response(cell: Any, column: str) -> str:
    if isinstance(cell, list) and len(cell) == 1:
        cell = cell[0].get("content") if isinstance(cell[0], dict) else cell[0]
    if isinstance(cell, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in cell):
        cell = "\n".join(str(part.get("text", "")) for part in cell)
    if not isinstance(cell, str) or not cell.strip():
        raise Invalid(f"{column}: not a response; give a non-empty string or one assistant message")
    return cell


def _messages(prompt: Any, hashes: Sequence[str]) -> tuple[Message, ...]:
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise Invalid("prompt: not a conversation; give a string or a non-empty list of messages")
    unplaced = list(hashes)
    placed = any(_is_image(part) for turn in turns for part in _parts(turn))
    messages: list[Message] = []
    for turn in turns:
        parts: list[TextPart | ImagePart] = []
        if not placed and turn.get("role") == "user" and unplaced:
            parts = [ImagePart.of(digest) for digest in unplaced]
            unplaced = []
        for part in _parts(turn):
            if _is_image(part):
                if not unplaced:
                    raise Invalid("prompt: more image parts than 'images'; list one file for each")
                parts.append(ImagePart.of(unplaced.pop(0)))
            elif isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
                parts.append(TextPart(text=part["text"]))
            else:
                raise Invalid(f"prompt: unknown message part {str(part)[:60]}; use {{type: text}} or {{type: image}}")
        try:
            messages.append(Message(role=turn.get("role", ""), content=tuple(parts)))
        except ValidationError as error:
            raise Invalid(f"prompt: {describe(error)}") from error
    if unplaced:
        raise Invalid(f"images: {len(unplaced)} more than the prompt's image parts; add a part for each or drop them")
    return tuple(messages)


def _parts(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise Invalid(f"prompt: got message content of type {type(content).__name__}; give a string or a list of parts")
    return content


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _content(cell: Any, folder: Path) -> tuple[str, bytes]:
    """Return name and bytes of an image cell: a file name, a data URI, or Parquet's ``{"bytes", "path"}``."""
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), bytes):
        return "embedded image", cell["bytes"]
    if isinstance(cell, dict) and cell.get("bytes") is None and isinstance(cell.get("path"), str):
        return _content(cell["path"], folder)
    if isinstance(cell, dict):
        fields = ", ".join(f"{name}: {type(value).__name__}" for name, value in list(cell.items())[:3])
        raise Invalid(f"images: got {{{fields[:100]}}}; give Parquet's {{bytes: binary, path: string}}")
    if not isinstance(cell, str):
        raise Invalid(f"images: got {type(cell).__name__}; give a file name or a data URI")
    if not cell.startswith("data:"):
        return cell, _file(cell, folder)
    try:
        return "data URI", base64.b64decode(cell.partition(",")[2], validate=True)
    except ValueError as error:
        raise Invalid(f"images: a data URI is not base64 ({describe_failure(error)}); encode it again") from error


def _file(name: str, folder: Path) -> bytes:
    """Read a file below ``folder``. The error for a path elsewhere does not reveal whether it exists."""
    # A longer one may be a picture in base64 without the prefix of a data URI.
    shown = repr(name) if len(name) <= _SHOWN_CHARACTERS else f"a name of {len(name)} characters"
    try:
        file = (folder / name).resolve()
        below = file.is_relative_to(folder.resolve())
        content = file.read_bytes() if below and file.is_file() else None
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise Invalid(f"images: {shown} cannot be read ({reason})") from error
    if not below:
        raise Invalid(f"images: {shown} is not below the data file's folder; put it there, or give a data URI")
    if content is None:
        raise Invalid(f"images: no file {shown} in the data file's folder; put it there, or give a data URI")
    return content
