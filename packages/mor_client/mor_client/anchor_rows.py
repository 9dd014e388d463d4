"""Anchors that a program has in memory, as rows of ``mor.prefs/1``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mor_core.datafiles import ColumnMap, Preference, preference_row
from mor_core.datafiles.conversations import own_pictures
from mor_core.errors import DataFileError, Invalid

from mor_client.given_arguments import WrongArgument, kind_of, listed
from mor_client.pictures import picture_bytes

_WANTED = "dicts with prompt, chosen and rejected, or of tuples of these"
_PAIR = ("prompt", "chosen", "rejected", "images")
_PICTURES = ("images", "image")
"""Columns of pictures: of ``mor.prefs/1``, and of many data sets with one picture in each row."""


def anchor_rows(anchors: Iterable[Any], columns: str = "") -> Iterator[dict[str, Any]]:
    """Yield the row of each anchor: a dict of columns, a tuple ``(prompt, chosen, rejected)`` with the list of pictures
    as an optional fourth, or a ``Preference``. All pictures become encoded bytes.

    ``columns``: other names of the dicts' columns, see ``ColumnMap``.

    Raises:
        WrongArgument: ``anchors`` is no list of these.
        DataFileError: a picture is none, or its file cannot be read; names the anchor, counted from 1.
        Invalid: ``columns`` is no map.
    """
    renaming = ColumnMap.parse(columns)
    for place, anchor in enumerate(listed("anchors", anchors, _WANTED)):
        row = _row(anchor, place)
        try:
            yield _with_bytes(renaming.apply(row) if isinstance(anchor, Mapping) else row)
        except Invalid as error:
            raise DataFileError("anchors", place + 1, str(error)) from error


def _row(anchor: Any, place: int) -> dict[str, Any]:
    """Return the columns of an anchor.

    Raises:
        WrongArgument: it is none.
    """
    if isinstance(anchor, Preference):
        return preference_row(anchor, lambda _, content: content)
    if isinstance(anchor, Mapping):
        return dict(anchor)
    several = isinstance(anchor, tuple | list)
    if several and len(anchor) in (3, 4):
        return dict(zip(_PAIR, anchor, strict=False))
    raise WrongArgument(
        f"anchors[{place}]: got {kind_of(anchor)}{f' of {len(anchor)}' if several else ''}, wanted (prompt, chosen, "
        "rejected), with a list of pictures as an optional fourth, or a dict with these keys; "
        "DataFrame.to_dict('records') has them"
    )


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row whose pictures are bytes in its own columns, and not in the parts of its prompt."""
    given = next((name for name in _PICTURES if row.get(name) is not None), None)
    if given is not None:
        single = given == "image" and not isinstance(row[given], list | tuple)
        cells = [row[given]] if single else listed(given, row[given], "pictures")
        return row | {given: [_picture(cell) for cell in cells]}
    if cells := own_pictures(row.get("prompt")):
        return row | {"prompt": _without_pictures(row["prompt"]), "images": [_picture(cell) for cell in cells]}
    return row


def _picture(cell: Any) -> bytes:
    """Return the bytes of a picture.

    Raises:
        Invalid: it is the name of a file: rows come from data, which may be anybody's.
    """
    named = cell
    if isinstance(cell, Mapping) and cell.get("bytes") is None:
        named = next((cell[name] for name in ("path", "image") if cell.get(name) is not None), cell)
    if isinstance(named, str) and not named.startswith("data:"):
        raise Invalid(
            f"images: got the name {named[:80]!r} of a file, wanted a picture, because data could name any file of "
            "this machine; give its bytes, or pathlib.Path(name) where the file may be sent"
        )
    return picture_bytes(named)


def _without_pictures(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [
        {**turn, "content": [_place(part) for part in turn["content"]]} if isinstance(turn["content"], list) else turn
        for turn in prompt
    ]


def _place(part: Any) -> Any:
    return {"type": "image"} if isinstance(part, dict) and part.get("type") in ("image", "image_url") else part
