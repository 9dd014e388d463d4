"""The demonstration's processes: one for each service and client, as in a cluster, run by honcho from the Procfile.

``python -m three_domains.stack down --state DIR`` ends a stack that ``make up`` left running.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.fernet import Fernet
from mor_core.auth import Scope, Token, hash_token

CLIENTS = ("detail", "medical", "chart")
HTTP_SERVICES = (*CLIENTS, "router", "rollout", "control")
_FIRST_PORT = 7600
_STOP_S = 30.0
_START_S = 240.0
_PROCFILE = Path(__file__).parent.parent / "Procfile"


class StackError(RuntimeError):
    """The stack did not come up or went down; the message names the process and its log."""


@dataclass(frozen=True)
class Stack:
    """Where the services answer and with which tokens."""

    state: Path
    ports: dict[str, int]
    admin_token: str
    client_secrets: dict[str, str]

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name]}"

    @property
    def log(self) -> Path:
        return self.state / "stack.log"

    @property
    def _pid_file(self) -> Path:
        return self.state / "stack.pid"

    def http(self, name: str, timeout_s: float = 60.0) -> httpx.Client:
        """A client of one service with the administrator's token."""
        return httpx.Client(
            base_url=self.url(name), headers={"Authorization": f"Bearer {self.admin_token}"}, timeout=timeout_s
        )

    def start(self, *names: str) -> None:
        """Start the named processes of the Procfile, or all; returns at once."""
        command = [sys.executable, "-m", "honcho", "--no-colour", "-e", str(self.state / "stack.env"),
                   "-d", str(self.state), "-f", str(_PROCFILE), "start", *names]  # fmt: skip
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        with self.log.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | {"PATH": path}
            )
        self._pid_file.write_text(str(process.pid))

    def wait_until_ready(self, names: Sequence[str] = HTTP_SERVICES) -> Iterator[str]:
        """Yields the name of each service as it becomes ready.

        Raises:
            StackError: a process ended, or a service is not ready in time; with the end of the log.
        """
        waiting = list(names)
        deadline = time.monotonic() + _START_S
        missing: dict[str, str] = {}
        while waiting:
            for name in list(waiting):
                with contextlib.suppress(httpx.TransportError):
                    answer = httpx.get(f"{self.url(name)}/readyz", timeout=10)
                    if answer.status_code == httpx.codes.OK:
                        waiting.remove(name)
                        yield name
                    else:
                        missing[name] = answer.text[:300]
            self.check()
            if time.monotonic() > deadline:
                raise StackError(f"not ready after {_START_S:g} s: {waiting}; {missing}\n{self._log_end()}")
            time.sleep(0.2)

    def check(self) -> None:
        """Raises StackError when the stack is down."""
        if not self._alive():
            raise StackError(f"a process of the stack ended, and with it all others\n{self._log_end()}")

    def stop(self) -> None:
        """End every process and wait for it; nothing happens when none runs."""
        if not self._alive():
            self._pid_file.unlink(missing_ok=True)
            return
        pid = int(self._pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while self._alive():
            if time.monotonic() > deadline:
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.1)
        self._pid_file.unlink(missing_ok=True)

    def _alive(self) -> bool:
        try:
            pid = int(self._pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return False
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
        try:
            return b"honcho" in Path(f"/proc/{pid}/cmdline").read_bytes() if Path("/proc").is_dir() else _exists(pid)
        except FileNotFoundError:
            return False

    def _log_end(self, lines: int = 25) -> str:
        return f"the end of {self.log}:\n" + "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _exists(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def prepare(state: Path, base_model: Path) -> Stack:
    """Choose ports, make tokens and secrets, and write the settings of every process to ``state/stack.env``.

    Each stack begins with an empty Redis: what an earlier one enrolled was encrypted with that one's key.
    """
    shutil.rmtree(state / "redis", ignore_errors=True)
    ports = _free_ports(["redis", *HTTP_SERVICES])
    admin, service, client = (secrets.token_urlsafe(32) for _ in range(3))
    client_secrets = {name: secrets.token_urlsafe(32) for name in CLIENTS}
    stack = Stack(state, ports, admin, client_secrets)
    tokens = state / "tokens.json"
    _write_tokens(
        tokens, ("operator", Scope.admin, admin), ("mor", Scope.service, service), ("wall", Scope.viewer, client)
    )
    for name in CLIENTS:
        _write_tokens(state / "clients" / name / "tokens.json", ("router", Scope.service, client_secrets[name]))
    runs = state / "runs"
    runs.mkdir(exist_ok=True)
    settings = {
        "STATE": str(state),
        **{f"{name.upper()}_PORT": str(port) for name, port in ports.items()},
        "MOR_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}/0",
        "MOR_TOKENS_FILE": str(tokens),
        "MOR_SERVICE_TOKEN": service,
        "MOR_SECRET_KEY": Fernet.generate_key().decode(),
        "MOR_CONTROL_URL": stack.url("control"),
        "MOR_RUNS_DIR": str(runs),
        "MOR_MODEL": str(base_model),
        "MOR_WEIGHTS_DIR": str(state / "pulled"),
        "MOR_ALLOW_LOOPBACK": "true",
        "MOR_EMBED_TEXT_MODEL": str(state / "parts/minilm"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    (state / "stack.env").touch(mode=0o600)
    (state / "stack.env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    return stack


def _write_tokens(path: Path, *holders: tuple[str, Scope, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [Token(name=name, scope=scope, sha256=hash_token(token)) for name, scope, token in holders]
    path.write_text(json.dumps([row.model_dump() for row in rows]))


def _free_ports(names: list[str]) -> dict[str, int]:
    """A free loopback port for each name, from 7600 on."""
    ports: dict[str, int] = {}
    candidate = _FIRST_PORT
    for name in reversed(names):
        while True:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                with contextlib.suppress(OSError):
                    probe.bind(("127.0.0.1", candidate))
                    ports[name] = candidate
            candidate += 1
            if name in ports:
                break
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(description="End the demonstration's stack.")
    parser.add_argument("action", choices=["down"])
    parser.add_argument("--state", type=Path, required=True)
    options = parser.parse_args()
    stack = Stack(options.state.resolve(), {}, "", {})
    stack.stop()
    print("the stack is down")


if __name__ == "__main__":
    main()
