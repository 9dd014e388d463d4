"""Services as processes, started by their command lines, over real HTTP and a real queue server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx
from cryptography.fernet import Fernet
from mor_core.auth import Scope, hash_token

from tests.certificates import NO_AUTHORITIES

BIN = Path(sys.executable).parent
START_S = 180.0
"""Longest start of a service, seconds: a vLLM engine on a busy machine."""
TOKENS = {
    "operator": ("admin-token-of-the-tests", Scope.admin),
    "mor": ("service-token-of-the-tests", Scope.service),
    "trainer": ("scorer-token-of-the-tests", Scope.scorer),
}

CLIENT_TOKEN = "token-of-a-client's-reward-service"
"""Token that the router sends to the reward services. They have a tokens file of their own, as at a client's site."""


class Processes:
    """Processes of a small cluster with one folder for their files."""

    def __init__(self, folder: Path, redis_url: str, model: Path) -> None:
        self.folder = folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, tuple[list[str], dict[str, str]]] = {}
        tokens = _write_tokens(folder / "tokens.json", TOKENS)
        self._client_tokens = _write_tokens(folder / "client.json", {"router": (CLIENT_TOKEN, Scope.service)})
        self.environment = os.environ | {
            "MOR_REDIS_URL": redis_url,
            "MOR_TOKENS_FILE": str(tokens),
            "MOR_SERVICE_TOKEN": TOKENS["mor"][0],
            "MOR_SECRET_KEY": Fernet.generate_key().decode(),
            "MOR_ROUTER_STATE_DIR": str(folder / "router"),
            "MOR_RUNS_DIR": str(folder / "runs"),
            "MOR_WEIGHTS_DIR": str(folder / "pulled"),
            "MOR_MODEL": str(model),
            "MOR_ALLOW_LOOPBACK": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        (folder / "runs").mkdir()

    def start(self, name: str, *command: str, **environment: str) -> None:
        self._commands[name] = (list(command), environment)
        own = {"MOR_TOKENS_FILE": str(self._client_tokens)} if command[0] == "mor-reward" else {}
        with (self.folder / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=self.environment | own | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )

    def serve(self, name: str, *command: str, **environment: str) -> str:
        """Start an HTTP service, wait until it is ready and return its address."""
        port_file = self.folder / f"{name}.address"
        self.start(name, *command, "--port-file", str(port_file), **environment)
        missing = "no response"
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._running[name].poll() is None, f"{name} ended:\n{self.log(name)}"
            if port_file.is_file():
                address = port_file.read_text()
                try:
                    response = httpx.get(f"{address}/readyz", timeout=5, verify=NO_AUTHORITIES)
                    missing = response.text
                    if response.is_success:
                        return address
                except httpx.TransportError:
                    pass
            time.sleep(0.1)
        raise AssertionError(f"{name} was not ready in {START_S:g} s: {missing}\n{self.log(name)}")

    def kill(self, name: str) -> None:
        """Kill a process, as a crash does."""
        process = self._running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)

    def end(self, name: str) -> None:
        """Terminate a process, as an upgrade does."""
        process = self._running.pop(name)
        process.terminate()
        process.wait(timeout=60)

    def restart(self, name: str) -> None:
        command, environment = self._commands[name]
        self.start(name, *command, **environment)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-6000:]

    def stop(self) -> dict[str, int]:
        """Terminate all processes and return their exit statuses.

        The last that was started ends first, so a worker returns its run to services that still respond.
        """
        statuses = {}
        for name, process in reversed(self._running.items()):
            process.terminate()
            statuses[name] = process.wait(timeout=60)
        return statuses


def _write_tokens(path: Path, holders: Mapping[str, tuple[str, Scope]]) -> Path:
    rows = [{"name": n, "scope": s, "sha256": hash_token(token)} for n, (token, s) in holders.items()]
    path.write_text(json.dumps(rows))
    return path
