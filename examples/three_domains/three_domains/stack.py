"""Processes of the demonstration: one for each service and client, as in a cluster, run by honcho from the Procfile.

All processes get the ports and the name of the state folder (``stack.env``); only the server's processes read its
settings and secrets (``server.env``). A client's process gets its own model and tokens file, and no secret of others.
The operator's token is in ``operator.token``, Prometheus's in ``metrics.token``; ``mor.toml`` configures the command
``mor``, and ``dashboard.html`` opens the dashboard. Only their owner can read these files, and no log or command line
holds a token.

A process that needs a model waits until its folder is there, so that a stack can start before the models are trained.

``python -m three_domains.stack down --state DIR`` ends a stack that ``make up`` left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.fernet import Fernet
from mor_client.machine.machine_folder import dashboard_page
from mor_core import atomic
from mor_core.auth import Scope, Token, hash_token

CLIENTS = ("detail", "medical", "chart")
HTTP_SERVICES = (*CLIENTS, "router", "rollout", "control")
_FIRST_PORT = 7600
"""First port that is tried; the services of a stack get a block of free ones from there on."""
_STOP_S = 30.0
"""Seconds for all processes to end before they are killed."""
_KILL_S = 30.0
"""Seconds for a killed process to end; a longer wait is an error."""
_START_S = 600.0
"""Longest start of a service, seconds: the vLLM engine while reward models are trained on the same cores."""
_PROCFILE = Path(__file__).parent.parent / "Procfile"
_LINES = 25
"""Lines of output that an error quotes."""
_END = re.compile(r"^\S+ system +\| (?:SIG\w+ received|(\S+)\.1 stopped \(rc=(-?\d+)\))$", re.MULTILINE)
"""Pattern of the log line with the cause of the stack's end: a signal to honcho, or a process."""


class StackError(RuntimeError):
    """The stack did not start or ended; the message names the process and its log."""


@dataclass(frozen=True)
class Stack:
    """Addresses, tokens and processes of the services."""

    state: Path
    ports: dict[str, int]
    admin_token: str = field(repr=False)
    client_secrets: dict[str, str] = field(repr=False)
    viewer_token: str = field(default="", repr=False)
    procfile: Path = _PROCFILE

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def dashboard(self) -> str:
        """Address of the dashboard, with a token that can only read. Browsers do not send what follows ``#``."""
        return f"{self.url('control')}/#token={self.viewer_token}"

    @property
    def dashboard_file(self) -> Path:
        """Page that opens the dashboard: a link with the token would stay in logs and in the list of processes."""
        return self.state / "dashboard.html"

    @property
    def command_settings(self) -> Path:
        """Path for ``MOR_CONFIG``."""
        return self.state / "mor.toml"

    @property
    def log(self) -> Path:
        return self.state / "stack.log"

    @property
    def _pid_file(self) -> Path:
        return self.state / "stack.pid"

    @contextlib.contextmanager
    def http(self, name: str, timeout_s: float = 60.0) -> Iterator[httpx.Client]:
        """Open an HTTP client of one service with the administrator's token.

        Raises:
            StackError: the service does not respond in time.
        """
        headers = {"Authorization": f"Bearer {self.admin_token}"}
        try:
            with httpx.Client(base_url=self.url(name), headers=headers, timeout=timeout_s, trust_env=False) as client:
                yield client
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            output = self._last_lines(name)
            raise StackError(f"{name} at {self.url(name)} gives no answer ({reason})\n{output}") from error

    def start(self, *names: str) -> None:
        """Start the named processes of the Procfile, or all, without waiting."""
        command = [sys.executable, "-m", "honcho", "--no-colour", "-e", "stack.env",
                   "-d", str(self.state), "-f", str(self.procfile), "start", *names]  # fmt: skip
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | {"PATH": path}
            )
        try:
            self._pid_file.write_text(str(process.pid))
        except BaseException:  # a full disk, an interrupt: nothing else would know the process
            process.terminate()
            raise

    def wait_until_ready(self, names: Sequence[str] = HTTP_SERVICES) -> Iterator[str]:
        """Yield the name of each service when it becomes ready; the models that they need are there.

        Raises:
            StackError: a process ended, or a service is not ready in time; with its last output.
        """
        waiting = list(names)
        deadline = time.monotonic() + _START_S
        missing: dict[str, str] = {}
        while waiting:
            for name in list(waiting):
                with contextlib.suppress(httpx.TransportError):
                    answer = httpx.get(f"{self.url(name)}/readyz", timeout=10, trust_env=False)
                    if answer.status_code == httpx.codes.OK:
                        waiting.remove(name)
                        yield name
                    else:
                        missing[name] = answer.text[:300]
            self.check()
            if time.monotonic() > deadline:
                late = "; ".join(f"{name}: {missing.get(name, 'no answer')}" for name in waiting)
                raise StackError(f"not ready after {_START_S:g} s: {late}\n{self._last_lines(waiting[0])}")
            time.sleep(0.2)

    def check(self) -> None:
        """Check that the stack runs.

        Raises:
            StackError: the stack ended; the message has the process that ended first and its last output.
        """
        if self._alive():
            return
        end = _END.search(self._output())
        name, status = end.groups() if end is not None else (None, None)
        if name is None:
            raise StackError(f"the stack was ended by a signal; log: {self.log}")
        raise StackError(f"{name} ended with status {status}, which ended all others\n{self._last_lines(name)}")

    def stop(self, patience_s: float = _STOP_S) -> None:
        """End all processes and wait for them; kill those that do not end within ``patience_s`` seconds.

        An interrupt ends the patience.

        Raises:
            StackError: a killed process did not end.
        """
        if self._alive():
            pid = int(self._pid_file.read_text())
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + patience_s
            with contextlib.suppress(KeyboardInterrupt):
                while self._alive() and time.monotonic() < deadline:
                    time.sleep(0.1)
            if self._alive():
                os.killpg(pid, signal.SIGKILL)
        deadline = time.monotonic() + _KILL_S
        while left := self._processes():
            if time.monotonic() > deadline:
                raise StackError(f"processes {left} were killed and did not end; check what they wait for")
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        self._pid_file.unlink(missing_ok=True)

    def _alive(self) -> bool:
        """Return whether honcho runs."""
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        if not Path("/proc").is_dir():
            return _exists(pid)
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return b"honcho" in command and os.fsencode(self.state) in command

    def _processes(self) -> list[int]:
        """List the processes that honcho started for this stack, with their children, by their environment.

        Each has its own session, so they outlive a killed honcho.
        """
        mark = os.fsencode(f"STATE={self.state}")
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                given = (process / "environ").read_bytes().split(b"\0")
                if mark in given and any(entry.startswith(b"HONCHO_PROCESS_NAME=") for entry in given):
                    found.append(int(process.name))
        return found

    def _output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _last_lines(self, name: str) -> str:
        """Return the last output of a process and the path of the log."""
        own = [line for line in self._output().splitlines() if f" {name}.1 " in line.partition("|")[0]]
        return "\n".join([f"the last lines of {name} in {self.log}:", *own[-_LINES:]])


def _exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def prepare(state: Path, base_model: Path) -> Stack:
    """Choose ports, create tokens and secrets, and write the settings of every process below ``state``.

    Each stack starts with an empty Redis and without snapshots of the router's state, because enrolments of an earlier
    one are encrypted with that one's key.

    Raises:
        StackError: a stack is running on this state.
    """
    state = state.resolve()
    earlier = Stack(state, {}, "", {})
    if earlier._alive() or earlier._processes():
        cure = f"end it with `python -m three_domains.stack down --state {state}`"
        raise StackError(f"a stack is running on {state}; {cure}")
    for name in ("redis", "router"):
        shutil.rmtree(state / name, ignore_errors=True)
    ports = free_ports(["redis", *HTTP_SERVICES])
    admin, service, viewer, metrics = (secrets.token_urlsafe(32) for _ in range(4))
    client_secrets = {name: secrets.token_urlsafe(32) for name in CLIENTS}
    stack = Stack(state, ports, admin, client_secrets, viewer)
    tokens = state / "tokens.json"
    prometheus = ("prometheus", Scope.metrics, metrics)
    holders = (("operator", Scope.admin, admin), ("mor", Scope.service, service), ("dashboard", Scope.viewer, viewer))
    _write_tokens(tokens, *holders, prometheus)
    _write_private(state / "operator.token", admin)
    _write_private(metrics_token_file(state), metrics)
    _write_private(stack.dashboard_file, dashboard_page(stack.url("control"), viewer))
    for name in CLIENTS:
        router = ("router", Scope.service, client_secrets[name])
        _write_tokens(state / "clients" / name / "tokens.json", router, prometheus)
    runs = state / "runs"
    runs.mkdir(exist_ok=True)
    common = {
        "STATE": str(state),
        **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    server = {
        "MOR_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}/0",
        "MOR_TOKENS_FILE": str(tokens),
        "MOR_SERVICE_TOKEN": service,
        "MOR_SECRET_KEY": Fernet.generate_key().decode(),
        "MOR_CONTROL_URL": stack.url("control"),
        "MOR_ROUTER_URL": stack.url("router"),
        "MOR_RUNS_DIR": str(runs),
        "MOR_MODEL": str(base_model),
        "MOR_WEIGHTS_DIR": str(state / "pulled"),
        "MOR_ROUTER_STATE_DIR": str(state / "router"),
        "MOR_ALLOW_LOOPBACK": "true",
        "MOR_EMBED_TEXT_MODEL": str(state / "parts/minilm"),
        "MOR_ANCHOR_RESERVE": "0",  # 64 anchors are too few to hold any out
    }
    _write_command_settings(stack)
    _write_settings(state / "stack.env", common)
    _write_settings(state / "server.env", server)
    return stack


def metrics_token_file(state: Path) -> Path:
    """Return the file with the token for every service's ``/metrics``."""
    return state / "metrics.token"


def _write_command_settings(stack: Stack) -> None:
    """Write the configuration of the command ``mor``."""
    urls = {f"{name}_url": stack.url(name) for name in ("control", "router", "rollout")}
    lines = [f'{name} = "{value}"\n' for name, value in {**urls, "token_file": "operator.token"}.items()]
    _write_private(stack.command_settings, "".join(lines))


def _write_settings(path: Path, settings: Mapping[str, str]) -> None:
    """Write settings in the format of honcho and shells."""
    _write_private(path, "".join(f"{name}={shlex.quote(value)}\n" for name, value in settings.items()))


def _write_tokens(path: Path, *holders: tuple[str, Scope, str]) -> None:
    rows = [Token(name=name, scope=scope, sha256=hash_token(token)) for name, scope, token in holders]
    _write_private(path, json.dumps([row.model_dump() for row in rows]))


def _write_private(path: Path, text: str) -> None:
    """Write a file atomically, readable by its owner only."""
    atomic.write(path, text.encode(), mode=0o600)


def free_ports(names: list[str]) -> dict[str, int]:
    """Find a block of free loopback ports, from 7600 on, one for each name.

    Services bind theirs when their models are there. Until then another stack is kept off by the first one of the block
    that is in use: blocks of stacks are equal or disjoint.
    """
    first = _FIRST_PORT
    while not all(_is_free(first + place) for place in range(len(names))):
        first += len(names)
    return {name: first + place for place, name in enumerate(reversed(names))}


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="End the demonstration's stack.")
    parser.add_argument("action", choices=["down"])
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args()
    stack = Stack(options.state.resolve(), {}, "", {})
    stack.stop()
    print("the stack has ended")


if __name__ == "__main__":
    main()
