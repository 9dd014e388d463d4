"""Scopes of tokens, and the fields of answers that some scopes do not get.

A field declares its limits: ``Annotated[str | None, hidden_from(Scope.viewer)]`` is null for a viewer, and of a field
with ``OWN_ROWS`` a client gets its own rows alone. ``visible`` applies them, and ``docs/security.md`` lists them.
"""

from __future__ import annotations

import enum
import functools
import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

M = TypeVar("M", bound=BaseModel)


class Scope(enum.StrEnum):
    """Rights of a token."""

    admin = "admin"
    """All rights, including those of the other scopes."""
    service = "service"
    """Calls between MoR's own processes: weights, scores, run heartbeats."""
    scorer = "scorer"
    """Fused rewards for inputs of the caller's own: a trainer outside of MoR."""
    enrolment = "enrolment"
    """Enrol a client at the router."""
    client = "client"
    """Read the figures of one client."""
    viewer = "viewer"
    """Read status, for the server's own people."""
    labeller = "labeller"
    """Label audited groups, for a person: sees their questions, pictures and two responses."""
    metrics = "metrics"
    """Read Prometheus's figures at ``/metrics``."""


@dataclass(frozen=True)
class HiddenFrom:
    """Mark of a field that is null for callers of some scopes."""

    scopes: frozenset[Scope]
    but: tuple[str, ...] = ()
    """Fields of the value that these callers get nevertheless."""


@dataclass(frozen=True)
class OwnRows:
    """Mark of a field with rows of several clients, of which a caller of scope ``client`` gets its own alone.

    Rows are the values of a map by client, or have a field ``client``.
    """


OWN_ROWS = OwnRows()


def hidden_from(*scopes: Scope, but: tuple[str, ...] = ()) -> HiddenFrom:
    """Mark a field as null for ``scopes``, or reduced to the fields ``but`` of its value."""
    return HiddenFrom(frozenset(scopes), but)


def visible(value: M, scope: Scope, name: str) -> M:
    """Return ``value`` as a caller of ``scope`` with ``name`` may see it."""
    if not _limited(type(value), scope):
        return value
    shown = {
        field: _visible_field(getattr(value, field), info, scope, name)
        for field, info in type(value).model_fields.items()
    }
    return value.model_copy(update={field: part for field, part in shown.items() if part is not getattr(value, field)})


def marked_fields(model: type[BaseModel]) -> Iterator[tuple[str, HiddenFrom | OwnRows]]:
    """Yield path and mark of every marked field of a model and of the models in it."""
    for name, field in model.model_fields.items():
        for mark in _marks(field):
            yield name, mark
        for inner in models_in(field.annotation):
            yield from ((f"{name}.{path}", mark) for path, mark in marked_fields(inner))


@functools.cache
def _limited(model: type[BaseModel], scope: Scope) -> bool:
    return any(_applies(mark, scope) for _, mark in marked_fields(model))


def _applies(mark: HiddenFrom | OwnRows, scope: Scope) -> bool:
    return scope in mark.scopes if isinstance(mark, HiddenFrom) else scope is Scope.client


def _marks(field: FieldInfo) -> list[HiddenFrom | OwnRows]:
    return [mark for mark in field.metadata if isinstance(mark, HiddenFrom | OwnRows)]


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in a type, also those in its containers."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_in(inner)


def _visible_field(value: Any, field: FieldInfo, scope: Scope, name: str) -> Any:
    for mark in _marks(field):
        if value is None or not _applies(mark, scope):
            continue
        if isinstance(mark, HiddenFrom):
            if not mark.but:
                return None
            value = type(value).model_construct(**{kept: getattr(value, kept) for kept in mark.but})
        elif isinstance(value, dict):
            value = {client: row for client, row in value.items() if client == name}
        else:
            value = tuple(row for row in value if row.client == name)
    return _visible_inside(value, scope, name)


def _visible_inside(value: Any, scope: Scope, name: str) -> Any:
    if isinstance(value, BaseModel):
        return visible(value, scope, name)
    if isinstance(value, list | tuple):
        items = [_visible_inside(item, scope, name) for item in value]
        return value if all(map(operator.is_, items, value)) else type(value)(items)
    if isinstance(value, dict):
        shown = {key: _visible_inside(item, scope, name) for key, item in value.items()}
        return value if all(shown[key] is value[key] for key in value) else shown
    return value
