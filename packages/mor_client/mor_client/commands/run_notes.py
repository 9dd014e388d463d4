"""``mor run tag|note|csv``: words and remarks that people attach to a run, and its figures as a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from mor_core.errors import Invalid
from mor_core.runs import RunSnapshot

from mor_client.commands.common import Json, RunName, session
from mor_client.output import err, out, print_json


def tag(
    run: RunName,
    tags: Annotated[list[str] | None, typer.Argument(metavar="[TAG]...", help="Tags to add.")] = None,
    *,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="A tag to remove. Repeatable.")] = None,
    as_json: Json = False,
) -> None:
    """Add and remove tags of a run; with neither, print them. 'mor run list --tag TAG' finds runs by them."""
    with session(as_json) as mor:
        changed = tags or remove
        found = mor.runs.change(run, add_tags=tags or (), remove_tags=remove or ()) if changed else mor.runs.get(run)
        _print(found, "\n".join(found.tags or ()), as_json)


def note(
    run: RunName,
    text: Annotated[str | None, typer.Argument(help="The new note; '' removes it.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Set the note of a run; without TEXT, print it."""
    with session(as_json) as mor:
        found = mor.runs.get(run) if text is None else mor.runs.change(run, note=text)
        _print(found, found.note or "", as_json)


def save_csv(
    run: RunName,
    *,
    out_file: Annotated[Path | None, typer.Option("--out", dir_okay=False, help="File; stdout without it.")] = None,
) -> None:
    """Print every step and every evaluation of a run as CSV, one column for each number."""
    with session(as_json=False) as mor:
        parts = mor.runs.metrics_csv(run)
        first = next(parts, b"")  # what run control refuses leaves no file
        if out_file is None:
            target = sys.stdout.buffer
            target.write(first)
            target.writelines(parts)
            target.flush()
            return
        try:
            with out_file.open("wb") as file:
                file.write(first)
                file.writelines(parts)
        except OSError as error:
            raise Invalid(f"{out_file}: {error.strerror}; name a writable file") from error
        err.print(f"written to {out_file}", highlight=False, markup=False, soft_wrap=True)


def _print(run: RunSnapshot, text: str, as_json: bool) -> None:
    if as_json:
        print_json(run)
    elif text:
        out.print(text, highlight=False, markup=False, soft_wrap=True)
