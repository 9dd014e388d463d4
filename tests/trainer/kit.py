"""Shared pieces of the trainer's tests: tokens, prompts, specs, and the two processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import uvicorn
from cryptography.fernet import Fernet
from fastapi import FastAPI
from mor_core.runs import RunSpec
from mor_trainer.config import WorkerSettings
from mor_trainer.run.worker import TrainingWorker
from PIL import Image

from tests import fork_server
from tests.certificates import NO_AUTHORITIES

_MODULES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("mor-trainer", "serve"): ("mor_trainer.__main__", "mor_trainer.cli", "mor_trainer.app"),
    ("mor-trainer", "work"): (
        "mor_trainer.__main__",
        "mor_trainer.cli",
        "mor_trainer.run.worker",
        "transformers.models.idefics3.modeling_idefics3",
        "transformers.models.idefics3.processing_idefics3",
        "transformers.models.idefics3.image_processing_pil_idefics3",
        "transformers.models.llama.modeling_llama",
    ),
    ("torchrun", "--standalone"): (
        "torch.distributed.run",
        "torch.distributed.elastic.rendezvous.c10d_rendezvous_backend",
    ),
    ("mor-router", "serve"): ("mor_router.__main__", "mor_router.cli", "mor_router.app"),
}
"""Command -> its ``__main__``, and what it loads."""
TOKENS = {
    "admin": "token-admin",
    "service": "token-service",
    "viewer": "token-viewer",
    "client": "token-client",
    "enrolment": "token-enrolment",
    "labeller": "token-labeller",
}


def bearer(scope: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[scope]}"}


def write_prompts(folder: Path, count: int, name: str = "prompts.jsonl") -> Path:
    """Write a prompts file with one picture a row, in two domains."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for index in range(count):
        picture = f"images/{name}-{index}.png"
        Image.new("RGB", (64, 48), (index * 37 % 256, index * 91 % 256, index * 11 % 256)).save(folder / picture)
        domain = ("charts", "photos")[index % 2]
        row = {"id": f"p{index}", "prompt": f"How many circles? {index}", "images": [picture], "domain": domain}
        lines.append(json.dumps(row))
    (folder / name).write_text("\n".join(lines))
    return folder / name


def make_spec(model: Path, prompts: Path | None, **changes: Any) -> RunSpec:
    """Return the spec of a small run; ``changes`` are fields of ``RunSpec``."""
    return RunSpec.model_validate(
        {
            "name": "tiny",
            "model": str(model),
            "prompts": None if prompts is None else str(prompts),
            "steps": 6,
            "groups_per_step": 4,
            "group_size": 4,
            "sampling": {"max_tokens": 6},
            "optimiser": {"lr": 1e-3, "warmup_steps": 0},
            "micro_batch_tokens": 256,
            "checkpoint_every": 2,
            **changes,
        }
    )


class Processes:
    """Processes of the trainer on one runs folder, which tests start and kill."""

    def __init__(self, runs_dir: Path, tokens_file: Path, redis_url: str, logs: Path) -> None:
        self.runs_dir = runs_dir
        self._logs = logs
        self.environment = {
            **os.environ,
            "MOR_RUNS_DIR": str(runs_dir),
            "MOR_TOKENS_FILE": str(tokens_file),
            "MOR_REDIS_URL": redis_url,
            "MOR_SERVICE_TOKEN": TOKENS["service"],
            "MOR_LEASE_S": "3",
            "MOR_RUN_LEASE_S": "3",
            "MOR_CONTROL_LEASE_S": "1",
            "MOR_HEARTBEAT_S": "0.2",
            "MOR_POLL_S": "0.2",
            "MOR_GROUP_TIMEOUT_S": "4",
            "MOR_CHECK_PROCESSES": "1",
            "OMP_NUM_THREADS": "1",
        }
        self._running: list[subprocess.Popen[bytes]] = []
        self.address = ""
        self.forked = True
        """Commands are forked from a process that has loaded their libraries, unless a test is about their start."""

    def _start(self, name: str, *command: str, group: bool = False) -> subprocess.Popen[bytes]:
        with (self._logs / f"{name}.log").open("ab") as log:
            process = fork_server.start(
                [str(Path(sys.executable).parent / command[0]), *command[1:]],
                _MODULES.get(command[:2], ()) if self.forked else (),
                self.environment,
                log,
                Path(__file__).parents[2],
                group=group,
            )
        self._running.append(process)
        return process

    def serve(self, *, second: bool = False) -> subprocess.Popen[bytes]:
        """Start run control; ``second``: beside the one that owns the history."""
        port_file = self._logs / "port"
        port_file.unlink(missing_ok=True)
        port = self.address.rpartition(":")[2] or "0"
        process = self._start("serve", "mor-trainer", "serve", "--port", port, "--port-file", str(port_file))
        self.address = self._address(process, "serve", port_file)
        self.environment["MOR_CONTROL_URL"] = self.address
        if not second:
            self._wait_for_ownership()
        return process

    def _wait_for_ownership(self) -> None:
        """Wait until the lease of a run control that was killed is over."""
        deadline = time.monotonic() + 30
        with self.client() as http:
            while time.monotonic() < deadline and "run control" in http.get("/v1/workers").text:
                time.sleep(0.05)

    def route(self) -> str:
        """Start a router and return its address."""
        self.environment |= {"MOR_SECRET_KEY": Fernet.generate_key().decode(), "MOR_ALLOW_LOOPBACK": "true"}
        port_file = self._logs / "router-port"
        process = self._start("route", "mor-router", "serve", "--port-file", str(port_file))
        return self._address(process, "route", port_file)

    def _address(self, process: subprocess.Popen[bytes], name: str, port_file: Path) -> str:
        deadline = time.monotonic() + 120
        while not port_file.exists():
            assert process.poll() is None, self.log(name)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return port_file.read_text()

    def work(self, *arguments: str, group: bool = False) -> subprocess.Popen[bytes]:
        """Start a worker; with ``group``, in a process group of its own."""
        return self._start("work", "mor-trainer", "work", *arguments, group=group)

    def work_together(self, *command: str, restarts: int = 3) -> subprocess.Popen[bytes]:
        """Start two ranks on this machine by torchrun; ``command`` replaces ``mor-trainer work``."""
        given = command or (str(Path(sys.executable).parent / "mor-trainer"), "work")
        launch = ("torchrun", "--standalone", "--nproc-per-node=2", f"--max-restarts={restarts}", "--no-python")
        return self._start("work", *launch, *given)

    @contextmanager
    def working(self) -> Iterator[TrainingWorker]:
        """Run a worker on a thread of this process, for tests that do not kill it."""
        settings = WorkerSettings.model_validate(
            {name.removeprefix("MOR_").lower(): value for name, value in self.environment.items() if name[:4] == "MOR_"}
        )
        worker = TrainingWorker(settings)
        thread = threading.Thread(target=worker.work, daemon=True)
        thread.start()
        yield worker
        worker.end()
        thread.join(timeout=30)
        assert not thread.is_alive()

    def running(self, program: str = "") -> list[subprocess.Popen[bytes]]:
        """Return the processes that have not ended; with ``program``, only those of that name."""
        alive = [process for process in self._running if process.poll() is None]
        return [process for process in alive if not program or Path(cast(list[str], process.args)[0]).name == program]

    def log(self, name: str) -> str:
        path = self._logs / f"{name}.log"  # a worker on a thread of this process has none
        return path.read_text()[-8000:] if path.exists() else ""

    def client(self, scope: str = "admin") -> httpx.Client:
        return httpx.Client(base_url=self.address, headers=bearer(scope), timeout=20, verify=NO_AUTHORITIES)

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._running:
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=5)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client of an app whose lifespan runs."""
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Serve an app on a free port, because event streams need real sockets, and yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = True
