"""Options of the commands that read preferences, and what those commands print about them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mor_reward.console import err

Data = Annotated[Path, typer.Option(help="Preferences: a file, folder, pattern, archive or hub:OWNER/NAME.")]
Columns = Annotated[
    str,
    typer.Option(
        "--map", help="Other names of the columns, as prompt=question,images=image; ignore=source leaves one out."
    ),
]

SkipInvalid = Annotated[
    bool, typer.Option("--skip-invalid", help="Leave invalid rows out, and name them; see --most-invalid.")
]
MostInvalid = Annotated[float, typer.Option(min=0, max=1, help="Largest share of invalid rows with --skip-invalid.")]
_SHOWN_LEFT_OUT = 20
"""Rows left out of a training that are named; ``convert`` names all."""


def show_left_out(problems: list[str], shown: int | None = _SHOWN_LEFT_OUT) -> None:
    """Print the problems of the rows that were left out."""
    for problem in problems[:shown]:
        err.print(f"left out: {problem}", soft_wrap=True, highlight=False)
    if problems:
        err.print(f"left out: {len(problems)} rows", highlight=False)
