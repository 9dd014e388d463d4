"""Checks of the SDK's arguments. An error names the argument, what was given, what is wanted and the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mor_core.errors import Invalid
from mor_core.failures import describe
from PIL import Image
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


NOT_IN_NAMES = frozenset("/?#%\\ ")
"""Characters that no id of a run and no name of a client or an objective has, and that would change an address."""


class WrongArgument(Invalid, TypeError):
    """An argument has a type that the call does not take."""


def listed(argument: str, given: Any, wanted: str) -> list[Any]:
    """Return the entries of ``given``; a text, one picture or one object is no list. ``wanted``: what it lists.

    Raises:
        WrongArgument: ``given`` is no list.
    """
    single = isinstance(given, str | bytes | Path | Mapping | BaseModel | Image.Image) or is_array(given)
    if single or not isinstance(given, Iterable):
        raise WrongArgument(f"{argument}: got {kind_of(given)}, wanted a list of {wanted}; write {argument}=[…]")
    return [*given]


def record(argument: str, given: Any, kind: type[M]) -> M:
    """Return ``given`` as ``kind``: an object of it, or a dict of its fields.

    Raises:
        WrongArgument: it is neither.
        Invalid: a field is unknown or has a wrong value.
    """
    if isinstance(given, kind):
        return given
    name = kind.__name__
    if not isinstance(given, Mapping):
        raise WrongArgument(
            f"{argument}: got {kind_of(given)}, wanted {name}; write {name}(…), or a dict of its fields"
        )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        fields = ", ".join(kind.model_fields)
        raise Invalid(f"{argument}: {describe(error)}; the fields of {name} are {fields}") from error


def arguments(kind: type[M], **given: Any) -> M:
    """Return the arguments of a call as ``kind``, whose fields have their names.

    Raises:
        Invalid: one has a wrong type or value.
    """
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise Invalid(f"{describe(error)}; correct the argument") from error


def check_fields(argument: str, given: Mapping[str, Any], known: Iterable[str]) -> None:
    """Check that a dict has no other keys than ``known``.

    Raises:
        Invalid: it has.
    """
    names = [*known]
    if unknown := [name for name in given if name not in names]:
        raise Invalid(
            f"{argument}: got the unknown key {str(unknown[0])[:80]!r}, wanted {', '.join(names)}; correct it"
        )


def is_array(given: Any) -> bool:
    """Return whether ``given`` is an array of NumPy, which the SDK does not need itself."""
    return hasattr(given, "__array_interface__") and not isinstance(given, Image.Image)


def kind_of(given: Any) -> str:
    """Return the type of ``given`` as messages name it."""
    return "None" if given is None else type(given).__name__
