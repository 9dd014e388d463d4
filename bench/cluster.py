"""Processes of MoR for a measurement of the loop: queue server, client, router, rollout, run control, worker."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from cryptography.fernet import Fernet
from mor_core.auth import Scope, hash_token

_BIN = Path(sys.executable).parent
_START_S = 300.0
"""Longest start of a service, seconds: the engine of the largest measured model, on busy cores."""
_STOP_S = 60.0
"""Seconds for a process to end before it is killed."""
_SCORER = Path(__file__).with_name("scorer.py")


class Services:
    """Services as separate processes on loopback, started by their command lines; all end with the block."""

    def __init__(self, folder: Path, model: Path, *, threads: int = 1, pinned: Mapping[str, int] | None = None) -> None:
        """``pinned``: name of a process -> its core; the others run on any core."""
        self.folder = folder
        self._pinned = pinned or {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.token = secrets.token_hex(16)
        folder.mkdir(parents=True, exist_ok=True)
        tokens = [{"name": "bench", "scope": Scope.admin, "sha256": hash_token(self.token)}]
        (folder / "tokens.json").write_text(json.dumps(tokens))
        self._client_token = secrets.token_hex(16)
        client = [{"name": "router", "scope": Scope.service, "sha256": hash_token(self._client_token)}]
        (folder / "client.json").write_text(json.dumps(client))
        self._redis_port = _free_port()
        self.redis_url = f"redis://127.0.0.1:{self._redis_port}"
        self._environment = os.environ | {
            "MOR_REDIS_URL": self.redis_url,
            "MOR_TOKENS_FILE": str(folder / "tokens.json"),
            "MOR_SERVICE_TOKEN": self.token,
            "MOR_SECRET_KEY": Fernet.generate_key().decode(),
            "MOR_RUNS_DIR": str(folder / "runs"),
            "MOR_WEIGHTS_DIR": str(folder / "pulled"),
            "MOR_MODEL": str(model),
            "MOR_ALLOW_LOOPBACK": "true",
            "MOR_GROUP_TIMEOUT_S": "600",
            "MOR_LOG_LEVEL": "info",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(threads),
        }
        (folder / "runs").mkdir(exist_ok=True)
        self.addresses: dict[str, str] = {}

    def __enter__(self) -> Services:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._running.values():
            process.terminate()
        for process in self._running.values():
            try:
                process.wait(timeout=_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=_STOP_S)

    def queue(self) -> None:
        """Start the queue server."""
        command = [sys.executable, "-m", "mor_core.bundled_valkey", "--port", str(self._redis_port)]
        self._start("queue", [*command, "--dir", str(self.folder / "queue")], {})

    def scoring(self) -> None:
        """Start a client that scores by a rule and the router, with the client enrolled and active."""
        command = ("mor-reward", "serve", "--function", f"{_SCORER}:varied")
        client = self.serve("client", *command, MOR_TOKENS_FILE=str(self.folder / "client.json"))
        self.serve("router", "mor-router", "serve")
        with self.http("router") as http:
            body = {"name": "client", "url": client, "domains": "words", "token": self._client_token}
            http.post("/v1/clients", json=body).raise_for_status()
            change = {"state": "active", "reason": "no anchors in this measurement"}
            http.patch("/v1/clients/client", json=change).raise_for_status()

    def serve(self, name: str, *command: str, **environment: str) -> str:
        """Start an HTTP service, wait until it is ready and return its address.

        Start ``control`` before ``rollout``, which pulls the weights there.
        """
        port_file = self.folder / f"{name}.address"
        port_file.unlink(missing_ok=True)
        self._start(name, [str(_BIN / command[0]), *command[1:], "--port-file", str(port_file)], environment)
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            self.check(name)
            if port_file.is_file():
                self.addresses[name] = port_file.read_text()
                try:
                    if httpx.get(f"{self.addresses[name]}/readyz", timeout=5).is_success:
                        if name == "control":
                            self._environment["MOR_CONTROL_URL"] = self.addresses[name]
                        return self.addresses[name]
                except httpx.TransportError:
                    pass
            time.sleep(0.1)
        raise TimeoutError(f"{name} was not ready in {_START_S:g} s\n{self.log(name)}")

    def work(self, **environment: str) -> None:
        """Start the training process."""
        command = [str(_BIN / "mor-trainer"), "work"]
        self._start("worker", command, {"MOR_POLL_S": "0.2", **environment})

    def http(self, name: str) -> httpx.Client:
        """Open an HTTP client of one service with the administrator's token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.addresses[name], headers=headers, timeout=60)

    def create(self, spec: dict[str, Any]) -> str:
        """Create a run, which waits for a training process; return its id."""
        with self.http("control") as http:
            answer = http.post("/v1/runs", json=spec)
            if not answer.is_success:
                raise RuntimeError(answer.text)
            return str(answer.json()["id"])

    def train(self, spec: dict[str, Any], timeout_s: float) -> list[dict[str, Any]]:
        """Create a run, wait for its end, and return the metrics of its steps."""
        run = self.create(spec)
        with self.http("control") as http:
            deadline = time.monotonic() + timeout_s
            while (snapshot := http.get(f"/v1/runs/{run}").raise_for_status().json())["state"] != "finished":
                if snapshot["state"] in ("failed", "stopped"):
                    raise RuntimeError(f"{snapshot['error']}\n{self.log('worker')}")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"run {run} is at step {snapshot['step']} after {timeout_s:g} s")
                for name in list(self._running):
                    self.check(name)
                time.sleep(0.2)
            return list(http.get(f"/v1/runs/{run}/metrics").raise_for_status().json()["points"])

    def check(self, name: str) -> None:
        """Check that a process runs.

        Raises:
            RuntimeError: the process ended.
        """
        if self._running[name].poll() is not None:
            raise RuntimeError(f"{name} ended\n{self.log(name)}")

    def log(self, name: str) -> str:
        """Return the last output of a process."""
        return (self.folder / f"{name}.log").read_text(errors="replace")[-4000:]

    def _start(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        core = self._pinned.get(name)
        placed = command if core is None else ["taskset", "-c", str(core), *command]
        with (self.folder / f"{name}.log").open("wb") as log:
            self._running[name] = subprocess.Popen(
                placed, env=self._environment | environment, stdout=log, stderr=subprocess.STDOUT, cwd=self.folder
            )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
