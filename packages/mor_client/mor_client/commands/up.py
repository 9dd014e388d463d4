"""``mor up`` and ``mor exec``: all services of one machine, and other programs with their settings."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from mor_core.errors import Invalid, MorError
from mor_core.printable import visible_lines
from rich.markup import escape

from mor_client.exit_codes import ExitCode
from mor_client.machine.machine_file import MachineFile, read_machine_file
from mor_client.machine.machine_folder import MachineFolder
from mor_client.machine.programs import environment, programs
from mor_client.machine.supervisor import ProgramFailed, Supervisor
from mor_client.output import err

File = Annotated[Path, typer.Argument(help="File of this machine's services (.toml), see docs/single-machine.md.")]

_SERVICES = {"mor-router": "router", "mor-rollout": "rollout", "mor-trainer": "control"}
"""Program -> the service whose settings it gets."""


def up(file: File) -> None:
    """Run all services of this machine until SIGTERM, Ctrl-C or the end of the terminal, and start again what ends.

    A second signal ends them at once. The status is 0 after SIGTERM, 130 after Ctrl-C, 1 if a service cannot start, 2
    if the file is wrong or a port is taken."""
    with _printed():
        os.umask(0o077)
        machine = read_machine_file(file)
        folder = MachineFolder(machine.folder)
        with folder.held():
            _fill(machine, folder)
            supervisor = Supervisor(programs(machine, folder, file.absolute().parent), folder, machine.logs, _say)
            received = supervisor.run(ready=lambda: _welcome(machine, folder))
    if received is signal.SIGINT:
        raise typer.Exit(ExitCode.interrupted)


def execute(
    file: File,
    command: Annotated[list[str], typer.Argument(help="Program with its arguments, as mor-router export state.json.")],
) -> None:
    """Run another program with the settings and secrets of this machine's services, such as for a backup."""
    with _printed():
        machine = read_machine_file(file)
        folder = MachineFolder(machine.folder)
        if command[0] not in _SERVICES:
            known = ", ".join(_SERVICES)
            raise Invalid(f"{command[0]!r} reads no settings of this machine; the programs that do are {known}")
        if not folder.tokens.exists():
            raise Invalid(f"{folder.path} has no secrets yet; mor up makes them at its first start")
        variables = environment(machine, folder, _SERVICES[command[0]])
        try:
            os.execvpe(command[0], command, variables)  # noqa: S606
        except OSError as error:
            raise Invalid(f"{command[0]}: {error.strerror}; run make setup") from error


def _fill(machine: MachineFile, folder: MachineFolder) -> None:
    urls = {name: f"http://127.0.0.1:{port}" for name, port in machine.ports().items()}
    servers = {name: urls[name] for name in ("control", "router", "rollout")}
    folder.fill(servers, machine.redis_url, machine.queue.port, list(machine.clients))


def _welcome(machine: MachineFile, folder: MachineFolder) -> None:
    _say("all services are ready")
    _say(f"dashboard: open {folder.dashboard} in a browser; it signs you in")
    _say(f"command: in another shell, export MOR_CONFIG={folder.command_settings}; mor doctor")
    for name, client in machine.clients.items():
        enrol = f"mor client enrol {name} --url http://127.0.0.1:{client.port}"
        _say(f"client: unless it is enrolled, {enrol} --secret-file {folder.router_secret(name)}")
    _say("Ctrl-C ends all of them")


def _say(line: str) -> None:
    err.print(line, highlight=False, soft_wrap=True)


@contextmanager
def _printed() -> Iterator[None]:
    """End the command with the message and exit status of an error."""
    try:
        yield
    except MorError as error:
        err.print(
            f"[bold red]error:[/] {escape(visible_lines(str(error)))}", markup=True, soft_wrap=True, highlight=False
        )
        raise typer.Exit(ExitCode.refused if isinstance(error, ProgramFailed) else ExitCode.usage) from error
