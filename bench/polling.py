"""Measurement of polling during a training: the whole loop on a tiny model, in blocks of steps with and without polls.

The services are separate processes, as in the tests. Blocks come in pairs of alternating order, so that drift
affects both. The folders of published weights show the progress, which costs run control nothing.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from mor_trainer.weights.version_files import published_versions

sys.path.append(str(Path(__file__).parent.parent))

from tests.conftest import Valkey
from tests.e2e.processes import CLIENT_TOKEN, TOKENS, Processes
from tests.shapes import copy_questions, write_rows
from tests.tiny_models import build_tiny_vlm

POLLS_A_SECOND = 20
"""Rate of the polls; every other one has an ``ETag``."""
WARM_UP_STEPS = 10
"""Steps before the first block, which are not measured."""
_PATIENCE_S = 600.0
"""Longest wait for a step, seconds."""
_ADMIN = {"Authorization": f"Bearer {TOKENS['operator'][0]}"}
_SCORER = Path(__file__).parent.parent / "tests" / "e2e" / "scorers.py"


def during_training(pairs: int, steps: int) -> dict[str, Any]:
    """Measure milliseconds per poll, and the slow-down of steps, over ``pairs`` pairs of blocks of ``steps`` steps."""
    with tempfile.TemporaryDirectory(prefix="mor-bench-") as name, _training(Path(name)) as run:
        run.wait_for(WARM_UP_STEPS)
        blocks: list[tuple[bool, range]] = []
        latencies: list[float] = []
        for pair in range(pairs):
            for polled in (pair % 2 == 1, pair % 2 == 0):
                first = run.published() + 1  # the current step belongs to no block
                run.wait_for(first)
                if polled:
                    with _polling(run) as poller:
                        run.wait_for(first + steps)
                    latencies += poller.milliseconds
                else:
                    run.wait_for(first + steps)
                blocks.append((polled, range(first + 1, first + steps + 1)))
        seconds = run.step_seconds()
    means = [(polled, statistics.fmean(seconds[step] for step in block)) for polled, block in blocks]
    with_polls = [mean for polled, mean in means if polled]
    without = [mean for polled, mean in means if not polled]
    longer = [100 * (a / b - 1) for a, b in zip(with_polls, without, strict=True)]
    return {
        "polls_a_second": POLLS_A_SECOND,
        "polls": len(latencies),
        "poll_ms_median": statistics.median(latencies),
        "poll_ms_p99": float(np.quantile(latencies, 0.99)),
        "pairs": pairs,
        "steps_a_block": steps,
        "step_seconds": statistics.median(without),
        "longer_percent_median": statistics.median(longer),
        "longer_percent_quartiles": np.quantile(longer, (0.25, 0.75)).tolist(),
    }


@dataclass
class _Run:
    address: str
    name: str
    folder: Path
    processes: Processes

    @property
    def url(self) -> str:
        return f"{self.address}/v1/runs/{self.name}"

    def published(self) -> int:
        """Return the number of finished steps: a version is published after each, and version 0 before the first."""
        return max(published_versions(self.folder), default=0)

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while self.published() < step:
            if time.monotonic() > deadline:
                raise SystemExit(f"step {step} did not finish:\n{self.processes.log('worker')}")
            time.sleep(0.02)

    def step_seconds(self) -> dict[int, float]:
        reply = httpx.get(f"{self.url}/metrics?max_points=10000", headers=_ADMIN, timeout=60).raise_for_status()
        return {point["step"]: point["step_seconds"] for point in reply.json()["points"]}


@contextmanager
def _training(folder: Path) -> Iterator[_Run]:
    """Start a run with all its services."""
    (folder / "valkey").mkdir()
    server = Valkey(folder / "valkey")
    model = build_tiny_vlm(folder / "model")
    processes = Processes(folder, server.url, model)
    processes.environment |= {"MOR_LOG_LEVEL": "warning"}
    try:
        scorer = processes.serve("scorer", "mor-reward", "serve", "--function", f"{_SCORER}:length")
        control = processes.serve("control", "mor-trainer", "serve")
        processes.environment["MOR_CONTROL_URL"] = control
        processes.serve("rollout", "mor-rollout", "serve")
        router = processes.serve("router", "mor-router", "serve")
        client = {"name": "length", "url": scorer, "domains": "shapes", "token": CLIENT_TOKEN}
        _sent("POST", f"{router}/v1/clients", client)
        _sent("PATCH", f"{router}/v1/clients/length", {"state": "active", "reason": "no anchors in this measurement"})
        processes.start("worker", "mor-trainer", "work")
        spec = {
            "name": "polled",
            "model": str(model),
            "prompts": str(write_rows(folder / "prompts.jsonl", copy_questions(folder, 64))),
            "steps": 100_000,
            "groups_per_step": 8,
            "group_size": 8,
            "sampling": {"max_tokens": 16},
            "optimiser": {"lr": 1e-4},
            "checkpoint_every": 100_000,
        }
        name = _sent("POST", f"{control}/v1/runs", spec)["id"]
        yield _Run(control, name, folder / "runs" / name, processes)
    finally:
        processes.stop()
        server.stop()


def _sent(method: str, url: str, body: dict[str, Any]) -> Any:
    return httpx.request(method, url, json=body, headers=_ADMIN, timeout=120).raise_for_status().json()


@dataclass
class _Poller:
    """Client that requests the snapshot over one connection, at a steady rate; every other time with the last ETag."""

    run: _Run
    stop: threading.Event = field(default_factory=threading.Event)
    milliseconds: list[float] = field(default_factory=list)

    async def poll(self) -> None:
        host, port = self.run.address.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        due, tag, number = time.perf_counter(), "", 0
        while not self.stop.is_set():
            due += 1 / POLLS_A_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            number += 1
            known = [f"If-None-Match: {tag}"] if tag and number % 2 else []
            lines = [
                f"GET /v1/runs/{self.run.name} HTTP/1.1",
                f"Host: {host}",
                f"Authorization: {_ADMIN['Authorization']}",
            ]
            begun = time.perf_counter()
            writer.write("\r\n".join([*lines, *known, "", ""]).encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            headers = dict(line.split(": ", 1) for line in head.strip().splitlines()[1:])
            await reader.readexactly(int(headers.get("content-length", 0)))
            self.milliseconds.append(1e3 * (time.perf_counter() - begun))
            if head.split()[1] not in ("200", "304"):
                raise SystemExit(f"a poll got {head.splitlines()[0]}")
            tag = headers["etag"]
        writer.close()


@contextmanager
def _polling(run: _Run) -> Iterator[_Poller]:
    poller = _Poller(run)
    thread = threading.Thread(target=lambda: asyncio.run(poller.poll()))
    thread.start()
    try:
        yield poller
    finally:
        poller.stop.set()
        thread.join()
