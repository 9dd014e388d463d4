"""A whole MoR on this machine: real processes, a proxy on every link, a queue server with its append-only file."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
from cryptography.fernet import Fernet
from mor_core import bundled_valkey
from mor_core.auth import Scope, hash_token
from redis import Redis
from redis.exceptions import RedisError

from tests.chaos.link_proxy import Link, ProxyLoop
from tests.chaos.service_process import ServiceProcess
from tests.ports import free_port

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
ADMIN, SERVICE, CLIENT = "admin-token-of-the-chaos", "service-token-of-the-chaos", "token-of-a-chaos-client"

RUN_LEASE_S = 5.0
SETTINGS = {
    "MOR_RUN_LEASE_S": f"{RUN_LEASE_S:g}",
    "MOR_CONTROL_LEASE_S": "3",
    "MOR_HEARTBEAT_S": "0.5",
    "MOR_POLL_S": "0.5",
    "MOR_LEASE_S": "3",
    "MOR_GROUP_TIMEOUT_S": "10",
    "MOR_DEADLINE_S": "5",
    "MOR_CIRCUIT_OPEN_S": "1",
    "MOR_CIRCUIT_LONGEST_OPEN_S": "4",
    "MOR_PROBE_INTERVAL_S": "2",
    "MOR_GROUP_RETRY_S": "0.5",
    "MOR_WATCH_INTERVAL_S": "0.5",
    "MOR_PULL_TIMEOUT_S": "10",
    "MOR_CHECK_PROCESSES": "1",
    "MOR_LOG_FORMAT": "json",
}
"""Short times, so that a campaign of many faults ends on the same day. All else is at its default."""

DISK_BYTES = 2 << 30
"""Size of the file system of runs; small, so that filling it takes a moment."""
READY_S = 600.0
"""Longest start of the whole cluster, seconds, on a busy machine."""
_END_S = 30.0
"""Seconds in which a process must end after SIGTERM: Kubernetes kills it then."""
_ANSWER_S = 180.0
"""Longest wait for a service that starts again, on a busy machine, seconds."""
_TICK_S = 0.1
_MARK = "CHAOS_CLUSTER"
"""Variable in the environment of every process of a cluster, by which orphans are found."""


class Cluster:
    """Processes, links and files. Faults change them; the supervisor restarts what ended."""

    def __init__(
        self, folder: Path, model: Path, *, workers: int, older: str | None = None, settings: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self._settings = {**SETTINGS, **settings}
        self._older = None if older is None else _unpack(older, folder / "older")
        self.mark = uuid.uuid4().hex
        self.disk = _mount(folder / "disk")
        self.runs = folder / "disk" / "runs"
        self.runs.mkdir(parents=True)
        self.workers = [f"worker-{n}" for n in range(1, workers + 1)]
        self.engines, self.routers = ["engine-1", "engine-2"], ["router-1", "router-2"]
        self.clients = ["client-1", "client-2", "client-3"]
        self.services: dict[str, ServiceProcess] = {}
        self.links: dict[str, Link] = {}
        self.start_s: dict[str, float] = {}
        """Process -> seconds from its first start until it was ready."""
        self.model = model
        self._loop = ProxyLoop()
        listening = ["queue", "control", *self.engines, *self.routers, *self.clients]
        self._ports = {name: free_port() for name in listening}
        self.clock_library = build_clock_library(folder)
        holders = {"operator": (ADMIN, Scope.admin), "mor": (SERVICE, Scope.service)}
        self._tokens = _write_tokens(folder / "tokens.json", holders)
        self._client_tokens = _write_tokens(folder / "client.json", {"router": (CLIENT, Scope.service)})
        self._secret_key = Fernet.generate_key().decode()
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self.redis = Redis(port=self._ports["queue"], socket_timeout=5, socket_connect_timeout=2)
        self.http = httpx.Client(headers={"Authorization": f"Bearer {ADMIN}"}, timeout=10)
        self._define()

    def url(self, name: str) -> str:
        """Return the address of a service without a proxy: the harness's own view."""
        return f"http://127.0.0.1:{self._ports[name]}"

    def roles(self) -> Mapping[str, list[str]]:
        return {
            "worker": self.workers,
            "engine": self.engines,
            "router": self.routers,
            "control": ["control"],
            "client": self.clients,
        }

    def start(self) -> None:
        """Start all and wait until each is ready.

        Raises:
            AssertionError: one was not ready in time, with its log.
        """
        began = time.monotonic()
        self._supervisor.start()
        waiting = {"queue", "control", *self.engines, *self.routers, *self.clients, *self.workers}
        while waiting:
            for name in sorted(waiting):
                if self._is_ready(name):
                    self.start_s[name] = time.monotonic() - began
                    waiting.discard(name)
            assert time.monotonic() - began < READY_S, "\n".join(
                f"{name} was not ready in {READY_S:g} s:\n{self.log(name)[-3000:]}" for name in waiting
            )
            time.sleep(_TICK_S)
        for name in self.clients:
            self._enrol(name)

    def held_runs(self) -> dict[str, str]:
        """Return the run of each worker that holds one, as run control shows it: process -> run."""
        by_pid = {f"{socket.gethostname()}-{self.services[name].pid}": name for name in self.workers}
        return {by_pid[worker]: run for run, worker in self.holders().items() if worker in by_pid}

    def holders(self) -> dict[str, str]:
        """Return the worker that holds each run, as run control shows it: run -> host and process id."""
        return {found["run"]: found["name"] for found in self.get("control", "/v1/workers") if found["run"]}

    def get(self, service: str, path: str) -> Any:
        """Read from a service without a proxy, and wait while it is away: what is asked is history.

        Raises:
            TimeoutError: it did not answer for three minutes.
        """
        deadline = time.monotonic() + _ANSWER_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                reply = self.http.get(f"{self.url(service)}{path}")
                if reply.status_code < 500:
                    return reply.raise_for_status().json()
            time.sleep(0.2)
        raise TimeoutError(f"{service} did not answer {path} for {_ANSWER_S:g} s:\n{self.log(service)[-2000:]}")

    def log(self, name: str) -> str:
        path = self.services[name].log
        return path.read_text(errors="replace") if path.exists() else ""

    def stop(self) -> dict[str, int | None]:
        """Terminate all, callers first, and return the statuses; ``None`` for one that had to be killed."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        order = [*self.workers, *self.engines, *self.routers, "control", *self.clients, "queue"]
        return {name: self.services[name].end(_END_S) for name in order}

    def clear(self) -> None:
        """Kill what is left, and close links and disk."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for service in self.services.values():
            service.signal(signal.SIGKILL)
            service.end(5)
        for link in self.links.values():
            link.close()
        self._loop.close()
        self.http.close()
        self.redis.close()
        if self.disk is not None:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=False)

    def orphans(self) -> list[str]:
        """List the processes of this cluster that still exist."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        return found

    def control_command(self, **environment: str) -> tuple[list[str], dict[str, str]]:
        """Return command and environment of run control, for a second one."""
        return [str(BIN / "mor-trainer"), "serve"], self._environment("control", **environment)

    # --- set-up ---------------------------------------------------------------------------------------------------

    def _define(self) -> None:
        (self.folder / "queue").mkdir()
        port = self._ports["queue"]
        queue = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(port, self.folder / "queue")]
        self._add("queue", queue, {})
        self._add("control", *self.control_command(MOR_PORT=str(self._ports["control"])))
        for name in self.engines:
            environment = {"MOR_WEIGHTS_DIR": str(self.folder / f"{name}-weights"), "MOR_BACKEND": "transformers"}
            self._add(name, [str(BIN / "mor-rollout"), "serve"], self._environment(name, **environment))
        for name in self.routers:
            environment = {"MOR_ROUTER_STATE_DIR": str(self.folder / "router-state")}
            self._add(name, [str(BIN / "mor-router"), "serve"], self._environment(name, **environment))
        for name in self.clients:
            command = [str(BIN / "mor-reward"), "serve", "--function", f"{HERE / 'client_scores.py'}:score"]
            environment = {
                "MOR_TOKENS_FILE": str(self._client_tokens),
                "CHAOS_BEHAVIOUR": str(self.behaviour(name)),
            }
            self._add(name, command, self._environment(name, **environment))
            self._link(f"routers>{name}", name)
        for name in self.workers:
            self._add(name, [str(BIN / "mor-trainer"), "work"], self._environment(name, MOR_STANDBY="true"))
        self._link("user>control", "control")

    def behaviour(self, client: str) -> Path:
        """Return the file that tells a client's scoring function how to behave."""
        return self.folder / f"{client}.behaviour"

    def _environment(self, name: str, **own: str) -> dict[str, str]:
        environment = {**os.environ, **self._settings}
        environment |= {
            _MARK: self.mark,
            "MOR_TOKENS_FILE": str(self._tokens),
            "MOR_SERVICE_TOKEN": SERVICE,
            "MOR_SECRET_KEY": self._secret_key,
            "MOR_RUNS_DIR": str(self.runs),
            "MOR_MODEL": str(self.model),
            "MOR_ALLOW_LOOPBACK": "true",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if self._older is not None and name in (self.workers[-1], self.engines[-1], self.routers[-1]):
            environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in self._older)
        if name in self._ports:
            environment["MOR_PORT"] = str(self._ports[name])
        if name not in self.clients:
            environment["MOR_REDIS_URL"] = f"redis://127.0.0.1:{self._link(f'{name}>queue', 'queue')}/0"
        if name in self.workers or name in self.engines:
            environment["MOR_CONTROL_URL"] = f"http://127.0.0.1:{self._link(f'{name}>control', 'control')}"
        if name == "control":
            environment["MOR_ROUTER_URL"] = f"http://127.0.0.1:{self._link('control>router-1', 'router-1')}"
        return environment | own

    def _add(self, name: str, command: list[str], environment: Mapping[str, str]) -> None:
        preload = {} if self.clock_library is None else {"LD_PRELOAD": str(self.clock_library)}
        marked = {_MARK: self.mark, **environment, **preload}
        self.services[name] = ServiceProcess(name, command, marked, self.folder)

    def _link(self, name: str, target: str) -> int:
        """Return the port of a link, which is made at the first call."""
        if name not in self.links:
            self.links[name] = Link(self._loop, name, free_port(), self._ports[target])
        return self.links[name].port

    def _supervise(self) -> None:
        while not self._over.wait(_TICK_S):
            for service in self.services.values():
                service.tick()

    def _is_ready(self, name: str) -> bool:
        with contextlib.suppress(httpx.TransportError, RedisError):
            if name == "queue":
                return bool(self.redis.ping())
            if name in self.workers:
                mine = f"{socket.gethostname()}-{self.services[name].pid}"
                workers = self.http.get(f"{self.url('control')}/v1/workers")
                return workers.is_success and any(worker["name"] == mine for worker in workers.json())
            return self.http.get(f"{self.url(name)}/readyz").is_success
        return False

    def _enrol(self, name: str) -> None:
        url = f"http://127.0.0.1:{self.links[f'routers>{name}'].port}"
        body = {"name": name, "url": url, "domains": "shapes", "token": CLIENT}
        self.http.post(f"{self.url('router-1')}/v1/clients", json=body, timeout=30).raise_for_status()
        change = {"state": "active", "reason": "no anchors in this test"}
        self.http.patch(f"{self.url('router-1')}/v1/clients/{name}", json=change, timeout=30).raise_for_status()


@contextlib.contextmanager
def running(
    folder: Path,
    model: Path,
    *,
    workers: int,
    older: str | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Cluster]:
    """Run a cluster; its processes are gone and its disk is unmounted afterwards, whatever happens.

    ``older``: git revision whose code one worker, one engine and one router run. ``settings``: variables of all
    processes, besides ``SETTINGS``.
    """
    cluster = Cluster(folder, model, workers=workers, older=older, settings=settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.clear()


def _write_tokens(path: Path, holders: Mapping[str, tuple[str, Scope]]) -> Path:
    rows = [{"name": name, "scope": scope, "sha256": hash_token(token)} for name, (token, scope) in holders.items()]
    path.write_text(json.dumps(rows))
    return path


def _unpack(revision: str, folder: Path) -> list[Path]:
    """Write the code of a git revision to a folder, and return its import paths."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", revision], cwd=HERE.parents[1], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive, check=True)
    return [path.parent for path in folder.glob("*/*/mor_*") if path.is_dir()]


def _mount(folder: Path) -> Path | None:
    """Mount a small file system at ``folder``; ``None`` where this user may not."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "chaos", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    return folder


def build_clock_library(folder: Path) -> Path | None:
    """Build the library that shifts a process's clock; ``None`` without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = folder / "clock_shift.so"
    source = HERE / "clock_shift.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library
