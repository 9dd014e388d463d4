"""Base types of everything that crosses a process boundary."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from mor_core.notebook_tables import NotebookTable
from mor_core.patterns import matching, plain_name

_DEEPEST = 32
"""Levels of a nested value: far more than any record of MoR has, and far from the limit of Python's recursion."""

Sha256 = Annotated[str, matching(r"^[0-9a-f]{64}$", "64 lower-case hexadecimal digits")]
"""Lower-case hexadecimal SHA-256 of a blob's bytes: its identity everywhere."""

RunId = Annotated[str, matching(r"^[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?$", plain_name(64, "'-'"))]
"""Id of a run: part of Redis keys and of paths."""
Count = Annotated[int, Field(ge=0, le=2**53)]
"""Step, version or number of tokens: as large as every reader of JSON and every database takes."""
GroupId = Annotated[str, StringConstraints(min_length=1, max_length=200)]

Finite = Annotated[float, Field(allow_inf_nan=False)]


def _check_json(value: dict[str, Any]) -> dict[str, Any]:
    """Check numbers and depth of a free-form value.

    Raises:
        ValueError: a number is not finite, or the value is nested too deeply.
    """
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        if any(isinstance(one, float) and not math.isfinite(one) for one in level):
            raise ValueError("a number is not finite; JSON has no NaN and no infinity")
        level = [
            inner
            for one in level
            if isinstance(one, dict | list | tuple)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
        if not level:
            return value
    raise ValueError(f"nested over {_DEEPEST} levels")


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_json)]
"""Free-form object with finite numbers and bounded depth."""


class Wire(NotebookTable):
    """Base of every type on the wire: immutable, with finite numbers, and without unknown fields where the reader does
    not allow for newer releases, see ``mor_core.wire``."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        hide_input_in_errors=True,
    )


class Documented(Wire):
    """Base of the types whose attribute docstrings appear in the OpenAPI schema and the generated pages."""

    model_config = ConfigDict(use_attribute_docstrings=True)
