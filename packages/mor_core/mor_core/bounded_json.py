"""Parsing of untrusted JSON: bounded in values before any object is built from it.

A parser builds an object for each value, and pydantic an error for each that does not fit: 60 MB of ``1,1,1`` took
46 s and 15 GB. Long strings are cheap, so the number of values is bounded and not their length.
"""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from mor_core.errors import TooLarge
from mor_core.failures import SHOWN_ERRORS, problem_of

MOST_VALUES = 100_000
"""Values of a large body: twice those of 256 groups of 64 responses with long conversations, and 0.2 s of parsing."""
_SEPARATORS = (b",", b":", b"[", b"{")
"""Each value but the first follows one of them."""


def parse(adapter: TypeAdapter[Any], content: bytes, *, most_values: int = MOST_VALUES) -> Any:
    """Parse and validate a JSON body.

    Raises:
        TooLarge: it has over ``most_values`` values.
        RequestValidationError: it is not JSON, or does not fit the type; without the input, which may be private.
    """
    check_values(content, most_values)
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_input=False)
        for shown in errors[:SHOWN_ERRORS]:  # here, as only this error tells the type of the whole body
            shown["msg"] = problem_of(shown, error.title)
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in errors]) from None


def check_values(content: bytes, most_values: int) -> None:
    """Check the number of values without parsing them.

    Raises:
        TooLarge: there are over ``most_values``.
    """
    if len(content) <= most_values:  # each value has at least one byte
        return
    # Each step is one pass of C code over the bytes, so that other threads run in between.
    plain = content.replace(rb"\\", b"").replace(rb"\"", b"") if b"\\" in content else content
    strings = plain.count(b'"') // 2
    if strings <= 2 * most_values:  # a member of an object has two: its name and its value
        outside = b"".join(plain.split(b'"')[::2])
        if sum(map(outside.count, _SEPARATORS)) <= 3 * most_values:  # an empty list as a member: a comma, a colon, "["
            return
    raise TooLarge(f"the body has over {most_values} values; send fewer items in one request")
