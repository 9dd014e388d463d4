"""Terminal of the command ``mor-reward``: output, errors, and tokens that files or variables hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe
from mor_core.printable import visible
from mor_core.retries import report_retries
from mor_core.terminal import TerminalConsole
from mor_core.token_file import is_token
from pydantic import ValidationError
from rich.markup import escape

out = TerminalConsole()
err = TerminalConsole(stderr=True)


@contextmanager
def printed_errors() -> Iterator[None]:
    """End the command on an error of MoR with its message instead of a traceback, and show retries in words."""
    report_retries(lambda line: err.print(f"[dim]{escape(line)}[/]", markup=True, soft_wrap=True, highlight=False))
    try:
        yield
    except MorError as error:
        err.print(f"[bold red]error:[/] {escape(visible(str(error)))}", markup=True, soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error
    except ValidationError as error:
        err.print(f"[bold red]error:[/] {escape(describe(error))}", markup=True, soft_wrap=True, highlight=False)
        raise typer.Exit(1) from error


def read_secret(file: Path | None, variable: str, cure: str) -> str:
    """Read a token from a file, else from a variable: other users see the options of a command.

    Raises:
        Invalid: the file does not exist, cannot be read, or holds something else than one token.
    """
    if file is None:
        return os.environ.get(variable, "").strip()
    if not file.is_file():
        raise Invalid(f"no file {file}; {cure}")
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} holds no token but other bytes; {cure}") from error
    if secret and not is_token(secret):
        raise Invalid(f"{file} does not hold one token; {cure}")
    return secret
