"""Services on this machine for the notebooks: a router with its queue server, and reward services."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from cryptography.fernet import Fernet
from mor_core import bundled_valkey
from mor_core.issued_tokens import issue
from mor_core.visibility import Scope

_START_S = 300.0
"""Longest start of a service, seconds: PyTorch loads slowly on a busy machine."""


class LocalServices:
    """Processes in a folder of their own, until ``stop`` or the end of this process."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mor-notebook-"))
        self._processes: list[subprocess.Popen[bytes]] = []
        atexit.register(self.stop)

    def router(self) -> str:
        """Start a queue server and a router that takes clients on this machine; return its address."""
        port = _free_port()
        data = self.folder / "queue"
        data.mkdir()
        self._start("queue", [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(port, data)], {})
        deadline = time.monotonic() + _START_S
        while not _listens(port):
            assert time.monotonic() < deadline, self.log("queue")
            time.sleep(0.05)
        return self.serve(
            "router",
            *("mor_router", "serve"),
            MOR_REDIS_URL=f"redis://127.0.0.1:{port}/0",
            MOR_SECRET_KEY=Fernet.generate_key().decode(),
            MOR_ROUTER_STATE_DIR=str(self.folder / "state"),
            MOR_TOKENS_FILE=str(self.folder / "tokens.json"),
            MOR_ALLOW_LOOPBACK="true",
            MOR_WORKER="false",
        )

    def token(self, holder: str, scope: str, tokens_file: str = "tokens.json") -> Path:
        """Create a token, as ``mor token create`` does; return the file with it."""
        file = self.folder / f"{holder}.token"
        file.touch(mode=0o600)
        file.write_text(issue(self.folder / tokens_file, holder, Scope(scope)))
        return file

    def serve(self, name: str, module: str, *arguments: str, **variables: str) -> str:
        """Run a service, wait until it is ready and return its address."""
        port_file = self.folder / f"{name}.address"
        command = [sys.executable, "-m", module, *arguments, "--port-file", str(port_file)]
        process = self._start(name, command, variables)
        deadline = time.monotonic() + _START_S
        while (problem := _problem(port_file)) is not None:
            assert process.poll() is None and time.monotonic() < deadline, f"{name}: {problem}\n{self.log(name)}"
            time.sleep(0.2)
        return port_file.read_text()

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        """End all processes and delete their files."""
        while self._processes:
            process = self._processes.pop()
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, name: str, command: list[str], variables: dict[str, str]) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )
        self._processes.append(process)
        return process


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def _problem(port_file: Path) -> str | None:
    """Return why a service is not ready; ``None`` once it is."""
    if not port_file.is_file():
        return "it does not listen yet"
    try:
        answer = httpx.get(f"{port_file.read_text()}/readyz", timeout=5, trust_env=False)
    except httpx.TransportError as error:
        return f"it does not answer ({type(error).__name__})"
    return None if answer.is_success else answer.text
