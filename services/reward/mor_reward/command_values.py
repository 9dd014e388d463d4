"""Values of options, and set-up of the libraries behind a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mor_core.errors import Invalid
from mor_core.failures import describe
from mor_core.wire.contract import ModelName
from pydantic import TypeAdapter, ValidationError


def named_values(option: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parse the ``name=value`` pairs of ``option``; a value that is not JSON is a string.

    Raises:
        Invalid: a pair has another form.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise Invalid(f"{option} {pair!r}: write it as name=value")
        try:
            values[name] = json.loads(value)
        except (ValueError, RecursionError):
            values[name] = value
    return values


def card_name(given: str | None, folder: Path) -> str:
    """Return the name on the card of the model in ``folder``.

    Raises:
        Invalid: no card takes it, so that the model could not be served.
    """
    name = given or folder.name
    try:
        return TypeAdapter[str](ModelName).validate_python(name)
    except ValidationError as error:
        raise Invalid(f"--name {name[:40]!r}: {describe(error)}; give a shorter one") from error


def configure_libraries(threads: int) -> None:
    """Limit PyTorch to ``threads`` threads, and keep transformers quiet."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
