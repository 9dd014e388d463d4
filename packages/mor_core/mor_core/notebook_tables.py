"""Typed reports as tables of a notebook: ``NotebookTable`` is the base of all types that services answer with."""

from __future__ import annotations

import html
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_MOST_ROWS = 50
"""Entries of a list that are shown: a page of a notebook."""
_LONGEST_TEXT = 300
"""Characters of a text that are shown: responses and messages may be pages long."""
_DEEPEST = 6
"""Levels of tables in tables: deeper ones cannot be read."""
_LATEST = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
"""Latest time that a calendar has, Unix time."""
_LEFT = "text-align:left"
_HIDDEN = "<em>not shown</em>"
_NOTHING = "&ndash;"
"""Sign of a value that is unknown or empty."""


class NotebookTable(BaseModel):
    """Base of a type that notebooks show as a table. Fields with ``repr=False``, such as tokens, are not shown: what a
    notebook shows is saved in its file."""

    def _repr_html_(self) -> str:
        return _fields(self, _DEEPEST)


def _fields(model: BaseModel, levels: int) -> str:
    """Return a table with a row for each field; its description is the tip of its name."""
    rows = [
        f'<tr>{_head(name, field, _LEFT)}<td style="{_LEFT}">{_value(model, name, field, levels)}</td></tr>'
        for name, field in type(model).model_fields.items()
    ]
    return f"<table><caption>{_text(type(model).__name__)}</caption>{''.join(rows)}</table>"


def _head(name: str, field: FieldInfo, style: str = "") -> str:
    return f'<th style="{style}" title="{_text(field.description or "")}">{_text(name)}</th>'


def _value(model: BaseModel, name: str, field: FieldInfo, levels: int) -> str:
    value = getattr(model, name)
    if not field.repr:
        return _HIDDEN
    if name.endswith("_at") and isinstance(value, float) and 0 <= value <= _LATEST:
        return datetime.fromtimestamp(value, UTC).isoformat(sep=" ", timespec="seconds")
    return _cell(value, levels)


def _cell(value: Any, levels: int) -> str:
    if isinstance(value, BaseModel | Mapping | list | tuple | set | frozenset):
        return _table(value, levels - 1) if levels else "…"
    if value is None:
        return _NOTHING
    return f"{value:.6g}" if isinstance(value, float) else _text(value)


def _table(value: Any, levels: int) -> str:
    if isinstance(value, BaseModel):
        return _fields(value, levels)
    if isinstance(value, Mapping):
        return _entries({_text(name): _cell(inner, levels) for name, inner in [*value.items()][:_MOST_ROWS]}, value)
    return _listed([*value], levels)


def _listed(values: list[Any], levels: int) -> str:
    """Return a table with a row for each of several objects of one type, or a line of other values."""
    shown = values[:_MOST_ROWS]
    if not shown:
        return _NOTHING
    kinds = {type(value) for value in shown}
    if len(kinds) != 1 or not issubclass(kind := kinds.pop(), BaseModel):
        return ", ".join(_cell(value, levels) for value in shown) + _more(values)
    fields = kind.model_fields
    head = "".join(_head(name, field) for name, field in fields.items())
    rows = "".join(
        f"<tr>{''.join(f'<td>{_value(value, name, field, levels)}</td>' for name, field in fields.items())}</tr>"
        for value in shown
    )
    return f"<table><tr>{head}</tr>{rows}</table>{_more(values)}"


def _entries(cells: Mapping[str, str], whole: Mapping[Any, Any]) -> str:
    rows = "".join(f'<tr><th style="{_LEFT}">{name}</th><td>{cell}</td></tr>' for name, cell in cells.items())
    return f"<table>{rows}</table>{_more(whole)}" if cells else _NOTHING


def _more(whole: list[Any] | Mapping[Any, Any]) -> str:
    return f" … and {len(whole) - _MOST_ROWS} more" if len(whole) > _MOST_ROWS else ""


def _text(value: Any) -> str:
    """Return a text without markup: names, messages and responses come from clients and models."""
    text = str(value)
    return html.escape(text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…")
