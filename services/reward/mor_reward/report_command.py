"""Command ``mor-reward report``: what a reward service was asked, for the client's data-protection officer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from mor_core.printable import visible, visible_json

from mor_reward.console import printed_errors


def report(
    *,
    answers_dir: Annotated[Path, typer.Option(envvar="MOR_ANSWERS_DIR", help="Folder of the service's answers.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="Days to report, today (UTC) included.")] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Report what routers asked and were answered, what bounds it, and how much budget is left today."""
    with printed_errors():
        from mor_reward.answers import protection_report

        found = protection_report.build(answers_dir, days)
        if as_json:
            sys.stdout.write(visible_json(found.model_dump_json(indent=2)) + "\n")
        else:
            for line in protection_report.as_text(found):
                sys.stdout.write(visible(line) + "\n")
