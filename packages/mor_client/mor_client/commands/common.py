"""Shared parts of the commands: options, session with the services, exit statuses, completion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe
from pydantic import ValidationError
from rich.markup import escape
from stamina.instrumentation import RetryDetails, set_on_retry_hooks

from mor_client.config import read_settings
from mor_client.exit_codes import ExitCode, exit_code_of
from mor_client.output import err, print_error
from mor_client.sdk import Mor

_COMPLETION_S = 1.0
"""Seconds to wait for the names of a completion; a person waits at the prompt."""

Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, errors as JSON on stderr.")]


@contextmanager
def session(as_json: bool) -> Iterator[Mor]:
    """Yield the services; on an error, end the command with its message and exit status."""
    set_on_retry_hooks([] if as_json else [_print_retry])
    try:
        with Mor() as mor:
            yield mor
    except (MorError, ValidationError) as error:
        shown = Invalid(describe(error)) if isinstance(error, ValidationError) else error
        print_error(shown, as_json=as_json)
        raise typer.Exit(exit_code_of(shown)) from error
    except KeyboardInterrupt as error:
        raise typer.Exit(ExitCode.interrupted) from error


def _print_retry(details: RetryDetails) -> None:
    err.print(
        f"[dim]{escape(str(details.caused_by))}; trying again in {details.wait_for:.1f} s[/]",
        highlight=False,
        soft_wrap=True,
    )


def read_secret(file: Path, cure: str) -> str:
    """Read the secret in a file. Secrets are not arguments, which other users can read and shells record.

    Raises:
        Invalid: the file cannot be read or is empty.
    """
    try:
        secret = file.read_text().strip()
    except OSError as error:
        raise Invalid(f"{file}: {error.strerror}; {cure}") from error
    if not secret:
        raise Invalid(f"{file} is empty; {cure}")
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


RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN", help="Id of the run.", autocompletion=complete(lambda mor: [run.id for run in mor.runs.list()])
    ),
]
RunNames = Annotated[
    list[str],
    typer.Argument(
        metavar="RUN...", help="Ids of runs.", autocompletion=complete(lambda mor: [run.id for run in mor.runs.list()])
    ),
]
ClientArgument = Annotated[
    str,
    typer.Argument(
        metavar="CLIENT",
        help="Name of the client.",
        autocompletion=complete(lambda mor: [client.name for client in mor.clients.list()]),
    ),
]
ObjectiveArgument = Annotated[
    str,
    typer.Argument(
        metavar="OBJECTIVE",
        help="Name of the objective.",
        autocompletion=complete(lambda mor: [objective.name for objective in mor.objectives.list()]),
    ),
]
