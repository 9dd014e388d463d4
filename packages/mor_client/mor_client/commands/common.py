"""Shared parts of the commands: options, session with the services, exit statuses, completion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe
from mor_core.retries import report_retries
from mor_core.token_file import is_token
from pydantic import ValidationError
from rich.markup import escape

from mor_client.config import read_settings
from mor_client.exit_codes import ExitCode, exit_code_of
from mor_client.given_arguments import NOT_IN_NAMES
from mor_client.output import err, out, print_error, print_json
from mor_client.sdk import Mor

T = TypeVar("T")

_COMPLETION_S = 1.0
"""Seconds to wait for the names of a completion; a person waits at the prompt."""

_WATCH_S = 2.0
"""Seconds between looks with --watch: a step takes longer, and a person waits."""

Watch = Annotated[
    bool, typer.Option("--watch", "-w", help="Show each change, until Ctrl-C; in a pipe, the changed lines.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, errors as JSON on stderr.")]


@contextmanager
def session(as_json: bool) -> Iterator[Mor]:
    """Yield the services; on an error, end the command with its message and exit status."""
    report_retries(None if as_json else _print_retry)
    try:
        with Mor() as mor:
            yield mor
    except (MorError, ValidationError) as error:
        shown = Invalid(describe(error)) if isinstance(error, ValidationError) else error
        print_error(shown, as_json=as_json)
        raise typer.Exit(exit_code_of(shown)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.interrupted) from error


def _print_retry(line: str) -> None:
    err.print(f"[dim]{escape(line)}[/]", markup=True, highlight=False, soft_wrap=True)


def show(read: Callable[[], T], print_found: Callable[[T], None], *, as_json: bool, watch: bool = False) -> None:
    """Print what ``read`` returns; with ``watch``, again at each change.

    On a terminal the new state replaces the former one. Elsewhere only the lines that changed follow, as with
    ``kubectl get --watch``, so that a script reads each change once.
    """
    last: T | None = None
    printed: set[str] = set()
    while True:
        found = read()
        if found != last:
            if as_json:
                print_json(found)
            elif watch and not out.is_terminal:
                printed = _print_changed(found, print_found, printed)
            else:
                if watch:
                    out.clear()
                print_found(found)
        if not watch:
            return
        last = found
        time.sleep(_WATCH_S)


def _print_changed(found: T, print_found: Callable[[T], None], printed: set[str]) -> set[str]:
    """Print the lines that the former state did not have, whatever its columns' widths; return this state's lines."""
    with out.capture() as captured:
        print_found(found)
    lines = {" ".join(line.split()): line for line in captured.get().splitlines()}
    for words, line in lines.items():
        if words not in printed:
            typer.echo(line)
    return set(lines)


def read_secret(file: Path, cure: str) -> str:
    """Read the secret in a file. Secrets are not arguments, which other users can read and shells record.

    Raises:
        Invalid: the file cannot be read, or does not hold one token.
    """
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}; {cure}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{file} holds no token but other bytes; {cure}") from error
    if not secret:
        raise Invalid(f"{file} is empty; {cure}")
    if not is_token(secret):
        raise Invalid(f"{file} does not hold one token; {cure}")
    return secret


def write_secret(file: Path, secret: str) -> None:
    """Write a file that only its owner can read.

    Raises:
        Invalid: the file cannot be written.
    """
    try:
        file.touch(mode=0o600, exist_ok=True)
        file.chmod(0o600)
        file.write_text(secret)
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}; name a writable file") from error


def complete(names: Callable[[Mor], list[str]]) -> Callable[[str], list[str]]:
    """Return a completion of an argument by names from the services; empty if they do not respond in a second."""

    def completion(incomplete: str) -> list[str]:
        try:
            with Mor(read_settings(timeout_s=_COMPLETION_S, attempts=1)) as mor:
                return [name for name in names(mor) if name.startswith(incomplete)]
        except (MorError, ValidationError):
            return []

    return completion


def _checked(given: T) -> T:
    """Refuse names that nothing can have, before they become part of an address."""
    names: Any = [given] if isinstance(given, str) else given
    for name in names:
        if not name or not name.isprintable() or not NOT_IN_NAMES.isdisjoint(name):
            raise typer.BadParameter(f"{name!r} cannot be a name; 'list' shows the names that there are")
    return given


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="Id of the run.",
        callback=_checked,
        autocompletion=complete(lambda mor: [run.id for run in mor.runs.list()]),
    ),
]
RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...",
        help="Ids of runs.",
        callback=_checked,
        autocompletion=complete(lambda mor: [run.id for run in mor.runs.list()]),
    ),
]
ClientArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLIENT",
        help="Name of the client.",
        callback=_checked,
        autocompletion=complete(lambda mor: [client.name for client in mor.clients.list()]),
    ),
]
ObjectiveArgument = Annotated[
    str,
    typer.Argument(
        metavar="OBJECTIVE",
        help="Name of the objective.",
        callback=_checked,
        autocompletion=complete(lambda mor: [objective.name for objective in mor.objectives.list()]),
    ),
]
