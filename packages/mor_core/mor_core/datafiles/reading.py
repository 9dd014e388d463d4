"""Parser of prompts and preferences: all rows of a data set, or an error that names the line and a remedy."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from mor_core.datafiles.column_map import ColumnMap
from mor_core.datafiles.conversations import conversation, own_pictures, response
from mor_core.datafiles.layouts import layout_of
from mor_core.datafiles.layouts.layout import Content
from mor_core.datafiles.picture_cells import PictureCells, PictureProblem
from mor_core.datafiles.sources.row_files import RawRow, RowPlace, RowSource, open_rows
from mor_core.errors import DataFileError, Invalid, MorError
from mor_core.wire import Message

SHOWN_PROBLEMS = 10
"""Invalid lines that an error lists."""
_LONGEST_NAME = 200
"""Characters of an id, which may be a path, and of a domain; they are in messages about their rows, and in metrics."""
_NOWHERE = Path("/dev/null")
"""Folder of rows in memory, below which there is no file."""
_SHOWN_CHARACTERS = 100
"""Length up to which an error quotes an id."""
_ADD_ROWS: dict[Content, str] = {
    "prompts": "add rows",
    "preferences": "add rows in which responses to a prompt differ in score, rank or label",
}

Row = TypeVar("Row", "Prompt", "Preference")
Rows = Iterable[tuple[RowPlace, RawRow]]


@dataclass(frozen=True)
class Prompt:
    """Row of ``mor.prompts/1``. ``messages`` name images by hash, ``images`` holds their encoded bytes."""

    id: str
    messages: tuple[Message, ...]
    images: dict[str, bytes] = field(repr=False)
    domain: str | None
    person: str | None = None
    """Person whose data the row is, for a training that hides persons; never leaves the data's owner."""


@dataclass(frozen=True)
class Preference:
    """Row of ``mor.prefs/1``: for ``prompt``, ``chosen`` is preferred to ``rejected``."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True)
class ParsedRow(Generic[Row]):
    """Row of a data set: what it says, or what is wrong with it."""

    place: RowPlace
    name: str
    """Its id; empty where the row is too broken to have one."""
    value: Row | None
    problem: str | None
    pictures: Sequence[Path] = ()
    """Files of pictures that its problem is about."""


class NamePlaces(Protocol):
    """Places of the rows that have been read, by the rows' ids."""

    def get(self, name: str) -> RowPlace | None: ...

    def __setitem__(self, name: str, place: RowPlace) -> None: ...


def read_prompts(path: Path, columns: str = "", left_out: list[str] | None = None) -> list[Prompt]:
    """Read all prompts of a data set; of preferences, those that were answered.

    ``path``: see ``sources.row_files``. ``columns``: other names of its columns, see ``ColumnMap``. ``left_out``: if
    given, invalid rows are left out, and their places and problems are added to it.

    Raises:
        DataFileError: names the first invalid line and the cure; the message lists further invalid lines.
        Invalid: there is no such data set, or ``columns`` is no map.
    """
    return _read(path, scan_prompts(path, columns), "prompts", left_out)


def read_preferences(
    path: Path, columns: str = "", left_out: list[str] | None = None, *, most_left_out: float = 1.0
) -> list[Preference]:
    """Read all preferences of a data set; arguments and errors are those of ``read_prompts``.

    ``most_left_out``: largest share of the rows that may be left out.
    """
    return _read(path, scan_preferences(path, columns), "preferences", left_out, most_left_out)


def preferences_of(rows: Iterable[dict[str, Any]], name: str) -> list[Preference]:
    """Read preferences from rows in memory, by the checks of ``read_preferences``. Pictures are bytes; a name of a file
    is refused.

    ``name``: of the rows in errors, whose lines count from 1.

    Raises:
        DataFileError: names the first invalid row and the cure.
    """
    file = Path(name)
    numbered = ((RowPlace(file, line), row) for line, row in enumerate(rows, 1))
    source = RowSource(_NOWHERE, (file,), numbered)
    return _read(file, _scan(source, "", "preferences", _preference, {}), "preferences", None)


def scan_prompts(path: Path, columns: str = "", names: NamePlaces | None = None) -> Iterator[ParsedRow[Prompt]]:
    """Yield each row of a data set as a prompt, or with its problem; arguments are those of ``read_prompts``.

    ``names``: store of all ids, in which repeated ones are found; in memory by default, about 200 bytes each.

    Raises:
        Invalid: there is no such data set, or ``columns`` is no map.
    """
    return _scan(open_rows(path), columns, "prompts", _prompt, {} if names is None else names)


def scan_preferences(path: Path, columns: str = "") -> Iterator[ParsedRow[Preference]]:
    """Yield each row of a data set as a preference, or with its problem, like ``scan_prompts``."""
    return _scan(open_rows(path), columns, "preferences", _preference, {})


def refusal(
    path: Path, problems: Sequence[ParsedRow[Any]], count: int, content: Content, remark: str = ""
) -> DataFileError:
    """Return the error for a data set with invalid rows: ``count`` of them, of which ``problems`` are the first."""
    if not count:
        return DataFileError(path, 1, f"the file has no rows that give {content}; {_ADD_ROWS[content]}")
    first, *others = problems[:SHOWN_PROBLEMS]
    listed = ", ".join(_shown(other.place, first.place.file) for other in others)
    more = f" ({count - 1} more invalid lines: {listed}{', ...' if count > SHOWN_PROBLEMS else ''})"
    return DataFileError(first.place.file, first.place.line, f"{first.problem}{remark}{more if others else ''}")


def _read(
    path: Path,
    rows: Iterator[ParsedRow[Row]],
    content: Content,
    left_out: list[str] | None,
    most_left_out: float = 1.0,
) -> list[Row]:
    parsed: list[Row] = []
    problems: list[ParsedRow[Row]] = []
    pictures: dict[str, bytes] = {}
    for row in rows:
        if row.value is None:
            problems.append(row)
            continue
        images = row.value.prompt.images if isinstance(row.value, Preference) else row.value.images
        for digest, picture in images.items():
            images[digest] = pictures.setdefault(digest, picture)  # one copy for all rows that have it
        parsed.append(row.value)
    total = len(parsed) + len(problems)
    if left_out is not None and parsed and len(problems) <= most_left_out * total:
        left_out += [f"{row.place.file}:{row.place.line}: {row.problem}" for row in problems]
    elif problems or not parsed:
        few = left_out is not None and parsed and most_left_out
        most = f"; {len(problems)} of {total} rows are invalid, and a share of {most_left_out:g} may be left out"
        raise refusal(path, problems, len(problems), content, most if few else "")
    return parsed


def _scan(
    source: RowSource,
    columns: str,
    content: Content,
    parse: Callable[[dict[str, Any], PictureCells, Path, str], Row],
    names: NamePlaces,
) -> Iterator[ParsedRow[Row]]:
    renaming = ColumnMap.parse(columns)
    pictures = PictureCells(source.root)
    for place, row in _canonical(source.rows, renaming, content):
        name = ""
        try:
            if isinstance(row, Invalid):
                raise row
            name = _name(row, place, alone=len(source.files) == 1)
            if (former := names.get(name)) is not None:
                where = f"line {former.line}" + ("" if former.file == place.file else f" of {former.file}")
                raise Invalid(
                    f"id {name!r} is also used in {where}; give each row its own id, or leave the ids out by --map "
                    "ignore=id"
                )
            names[name] = place
            yield ParsedRow(place, name, parse(row, pictures, place.file.parent, name), None)
        except MorError as error:
            own = row.get("id") if isinstance(row, dict) else None
            named = f" (row {str(own)[:_SHOWN_CHARACTERS]!r})" if own else ""
            files = error.files if isinstance(error, PictureProblem) else ()
            yield ParsedRow(place, name, None, f"{error}{named}", files)


def _shown(place: RowPlace, file: Path) -> str:
    return str(place.line) if place.file == file else f"{place.file.name}:{place.line}"


def _canonical(rows: Rows, renaming: ColumnMap, content: Content) -> Iterator[tuple[RowPlace, RawRow]]:
    """Yield rows with the columns of ``mor.prompts/1`` or ``mor.prefs/1``; the first valid row has all rows' layout."""
    renamed = _renamed(rows, renaming)
    seen: list[tuple[RowPlace, RawRow]] = []
    for place, row in renamed:
        seen.append((place, row))
        if not isinstance(row, Invalid):
            layout = layout_of(set(row))
            whole = ((place, _without_nulls(row)) for place, row in chain(seen, renamed))
            yield from layout.preferences(whole) if content == "preferences" else layout.prompts(whole)
            return
    yield from seen


def _renamed(rows: Rows, renaming: ColumnMap) -> Iterator[tuple[RowPlace, RawRow]]:
    for place, row in rows:
        try:
            yield place, row if isinstance(row, Invalid) else renaming.apply(row)
        except Invalid as error:
            yield place, error


def _without_nulls(row: RawRow) -> RawRow:
    """Drop columns that are null, which Parquet has for what a row leaves out."""
    return row if isinstance(row, Invalid) else {name: value for name, value in row.items() if value is not None}


def _name(row: dict[str, Any], place: RowPlace, *, alone: bool) -> str:
    """Return the id of a row: its own, or its line, with the file's name where the data has several files.

    Other rows may have integers as ids, so the line is no bare number.
    """
    given, part = row.get("id"), row.get("part")
    if given is None or given == "":
        name = f"line-{place.line}" if alone else f"{place.file.name}:{place.line}"
    elif isinstance(given, str | int) and not isinstance(given, bool):
        name = str(given)
        if len(name) > _LONGEST_NAME:
            raise Invalid(f"id: {len(name)} characters; give at most {_LONGEST_NAME}, or leave the ids out: ignore=id")
    else:
        raise Invalid(f"id: got {type(given).__name__}; give a string or an integer")
    return name if part is None else f"{name}/{part}"


def _prompt(row: dict[str, Any], pictures: PictureCells, folder: Path, name: str) -> Prompt:
    domain = row.get("domain")
    if not isinstance(domain, str | None):
        raise Invalid(f"domain: got {type(domain).__name__}; give a string")
    if domain is not None and len(domain) > _LONGEST_NAME:
        raise Invalid(f"domain: {len(domain)} characters; give at most {_LONGEST_NAME}")
    person = row.get("person")
    if isinstance(person, bool) or not isinstance(person, str | int | None):
        raise Invalid(f"person: got {type(person).__name__}; give a string or an integer")
    if len(str(person)) > _LONGEST_NAME:
        raise Invalid(f"person: {len(str(person))} characters; give at most {_LONGEST_NAME}")
    listed, own = row.get("images"), own_pictures(row["prompt"])
    if listed and own and own != (listed if isinstance(listed, list) else [listed]):
        raise Invalid(
            "images: the row has other pictures in 'images' than in the parts of its prompt; leave these out, as in "
            "ignore=images"
        )
    shown = pictures.of_row(listed or own, folder)
    return Prompt(
        id=name,
        messages=conversation(row["prompt"], [digest for digest, _ in shown]),
        images=dict(shown),
        domain=domain,
        person=None if person is None else _one_form(str(person)) or None,
    )


def _one_form(person: str) -> str:
    """Return a person's name in one form: blanks, or accents typed in another way, must not make two persons of one,
    whom a training then hides by half."""
    return " ".join(unicodedata.normalize("NFKC", person).split())


def _preference(row: dict[str, Any], pictures: PictureCells, folder: Path, name: str) -> Preference:
    chosen, rejected = (response(row[column], column, row["prompt"]) for column in ("chosen", "rejected"))
    if chosen == rejected:
        raise Invalid("chosen and rejected are the same text; drop the row")
    return Preference(_prompt(row, pictures, folder, name), chosen, rejected)
