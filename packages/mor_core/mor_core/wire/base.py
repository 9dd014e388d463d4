"""Base types of everything that crosses a process boundary."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""Lower-case hexadecimal SHA-256 of a blob's bytes: its identity everywhere."""

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Wire(BaseModel):
    """Base of every type on the wire: immutable, without unknown fields, with finite numbers."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )


class Documented(Wire):
    """Base of the types whose attribute docstrings appear in the OpenAPI schema and the generated pages."""

    model_config = ConfigDict(use_attribute_docstrings=True)
