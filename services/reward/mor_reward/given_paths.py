"""Checks of the paths that a command was given, before it loads PyTorch: a mistake is answered at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from mor_core import writable
from mor_core.datafiles.sources import hub_rows, row_files
from mor_core.errors import Conflict, Invalid

MANIFEST = "reward.json"
"""File of a reward model's folder that describes it."""
FORMAT: Literal["mor.reward_model/1"] = "mor.reward_model/1"
"""Format of that folder."""


def check_data(data: Path) -> None:
    """Check that there is such a data set, of a kind that is read. One of the hub is looked up when it is read.

    Raises:
        Invalid: there is none.
    """
    if hub_rows.name_of(data) is None:
        for file in row_files.open_rows(data).files:
            row_files.check_kind(file)


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Check that a model's folder can be written.

    Raises:
        Conflict: it exists, and is not to be replaced.
        Invalid: it cannot be written.
    """
    if folder.exists() and not overwrite:
        raise Conflict(f"{folder} exists; choose another --out, or replace it with --overwrite")
    writable.check_folder(folder, "--out")


def check_checkpoint(option: str, name: str | None) -> None:
    """Check that a checkpoint that is written as a path is there; any other name may be one of the hub.

    Raises:
        Invalid: it is not.
    """
    if name is None:
        return
    path = Path(name)
    if path.is_file():
        raise Invalid(f"{option} {name} is a file; give the folder of the checkpoint")
    if (path.is_absolute() or name.startswith((".", "~"))) and not path.is_dir():
        raise Invalid(f"{option} {name}: no such folder; give the folder of a Hugging Face checkpoint or a hub name")


def check_model(folder: Path) -> None:
    """Check that a folder holds a reward model of the format that this version reads.

    Raises:
        Invalid: it does not.
    """
    file = folder / MANIFEST
    if not file.is_file():
        raise Invalid(f"{folder} has no {MANIFEST}; give a folder written by 'mor-reward train --out'")
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise Invalid(f"{file} is not JSON; copy the folder again, or train again") from error
    written = found.get("format") if isinstance(found, dict) else None
    if written != FORMAT:
        raise Invalid(
            f"{file}: got format {written!r:.80}, wanted {FORMAT!r}; give a folder written by 'mor-reward train --out' "
            "of this version"
        )


def function_file(reference: str) -> Path:
    """Return the file of a Python function, as in ``file.py:name``.

    Raises:
        Invalid: there is no such file.
    """
    file = reference.rpartition(":")[0]
    if not file or not Path(file).is_file():
        raise Invalid(f"--function {reference!r}: no file {file or reference!r}; write it as path/to/file.py:function")
    return Path(file)
