"""Suggestions for unknown fields: the field of a typed value that a misspelt name is nearest to.

A validation error names the place of the unknown field and not the type that stands there, so the type is looked up:
from the types that the error's title names, along the path.
"""

from __future__ import annotations

import difflib
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pydantic import BaseModel

_SIMILAR = 0.6
"""Least similarity of a suggestion, from 0 to 1: swapped letters of a short name, as in ``stesp``, give 0.8."""
_LONGEST_NAME = 100
"""Characters of a name that are compared."""
_SHOWN_FIELDS = 12
"""Fields that are listed where none is similar; more do not help the reader."""
_UNIONS = (typing.Union, types.UnionType)


def unknown_field(title: str, place: Sequence[int | str]) -> str:
    """Describe the unknown field at ``place`` of a value, with the field that may be meant.

    ``title``: that of the validation error, such as ``RunSpec`` or ``tagged-union[VlmConfig,TextConfig]``.
    """
    models = _models_at(_models_named(title), place[:-1])
    names = sorted({name for model in models for name in _names(model)})
    if place and (similar := nearest(str(place[-1]), names)) is not None:
        return f"unknown field; did you mean '{similar}'?"
    if names and len(names) <= _SHOWN_FIELDS:
        return f"unknown field; the fields here are {', '.join(names)}"
    return "unknown field; remove it, or correct its name"


def nearest(written: str, names: Iterable[str], least: float = _SIMILAR) -> str | None:
    """Return the name that a misspelt one is nearest to; ``None`` where none is similar by ``least``, 0 to 1."""
    return next(iter(difflib.get_close_matches(written[:_LONGEST_NAME], list(names), 1, least)), None)


@functools.lru_cache(256)
def _models_named(title: str) -> tuple[type[BaseModel], ...]:
    """Return the types that a title names; names of types are unique in MoR."""
    named = set(re.findall(r"\w+", title))
    waiting: list[type[BaseModel]] = [BaseModel]
    found = []
    while waiting:
        model = waiting.pop()
        if model.__name__ in named and model is not BaseModel:
            found.append(model)
        waiting += model.__subclasses__()
    return tuple(found)


def _models_at(kinds: Sequence[Any], place: Sequence[int | str]) -> list[type[BaseModel]]:
    """Return the types of objects that may stand at ``place`` of a value of one of these types.

    A part of the place that is no field, such as the chosen kind of a union, narrows the choice if it names a type or
    one of its literals.
    """
    found = list(kinds)
    for part in place:
        inner = [one for outer in found for one in _inner(outer, part)]
        found = inner or [one for one in found if _is_named(one, part)] or found
    return [one for one in found if _is_model(one)]


def _alternatives(kind: Any) -> Iterator[Any]:
    """Yield the types that a value may have, without annotations."""
    origin = typing.get_origin(kind)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(kind)[0])
    elif origin in _UNIONS:
        for one in typing.get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _inner(kind: Any, part: int | str) -> Iterator[Any]:
    """Yield the types of the part of a value: a field, an entry of a list, a value of a mapping."""
    if _is_model(kind):
        for name, field in kind.model_fields.items():
            if part in (name, field.alias):
                yield from _alternatives(field.annotation)
        return
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is dict:
        yield from _alternatives(arguments[1])
    elif origin in (list, tuple, set, frozenset) and isinstance(part, int):
        for one in arguments:
            if one is not Ellipsis:
                yield from _alternatives(one)


def _is_named(kind: Any, part: int | str) -> bool:
    """Return whether a part of a place names this type: by its name, or by the literal of one of its fields."""
    if not _is_model(kind):
        return False
    literals = (field.annotation for field in kind.model_fields.values())
    return kind.__name__ == part or any(
        typing.get_origin(one) is typing.Literal and part in typing.get_args(one) for one in literals
    )


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _names(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]
