"""Measurement of polling: unchanged responses (304) per second, a long history down-sampled, polls of a training.

``python bench/status.py`` starts ``mor-trainer serve`` on one core and calls it from another; then it trains a tiny
model with all services (``polling.py``), with twenty polls a second and without, in pairs. It writes
``bench/results/status.json``. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from machine import end_children_on_sigterm, record
from mor_core import bundled_valkey
from mor_core.auth import hash_token
from polling import during_training

TOKEN = "a-token-for-the-measurement"
CONNECTIONS, SECONDS = 8, 5.0
STEPS, POINTS, ROUNDS = 100_000, 1000, 5
QUEUE_PORT = 7899
"""Port of the queue server; not the default one, which may be in use."""
START_S = 120.0
"""Longest start of run control, seconds."""


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Start run control as a separate process on the first core; yield its address."""
    tokens, address = folder / "tokens.json", folder / "address"
    tokens.write_text(json.dumps([{"name": "bench", "scope": "admin", "sha256": hash_token(TOKEN)}]))
    environment = os.environ | {
        "MOR_RUNS_DIR": str(folder / "runs"),
        "MOR_TOKENS_FILE": str(tokens),
        "MOR_REDIS_URL": f"redis://127.0.0.1:{QUEUE_PORT}/0",
        "MOR_LOG_LEVEL": "error",
    }
    (folder / "queue").mkdir()
    queue = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(QUEUE_PORT, folder / "queue")]
    script = "from mor_trainer.cli import main; main()"
    control = [sys.executable, "-c", script, "serve", "--port-file", str(address)]
    with (
        subprocess.Popen(queue, stdout=subprocess.DEVNULL) as queue_process,
        subprocess.Popen(control, env=environment) as process,
    ):
        try:
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(process.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:] or cores)
            deadline = time.monotonic() + START_S
            while not address.exists():
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit("mor-trainer serve did not start")
                time.sleep(0.1)
            yield address.read_text()
        finally:
            process.terminate()
            queue_process.terminate()


def create(address: str, folder: Path) -> str:
    """Create a run that waits for a worker; return its id."""
    (folder / "prompts.jsonl").write_text('{"prompt": "What is it?"}\n')
    spec = {"name": "bench", "model": "any/hub-name", "prompts": str(folder / "prompts.jsonl"), "steps": STEPS}
    reply = httpx.post(f"{address}/v1/runs", json=spec, headers=bearer(), timeout=START_S).raise_for_status()
    return str(reply.json()["id"])


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


async def unchanged(address: str, run: str, tag: str) -> float:
    """Measure 304 responses per second over keep-alive connections, each of which repeats its request at once."""
    host, port = address.removeprefix("http://").split(":")
    lines = [f"GET /v1/runs/{run} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}", f"If-None-Match: {tag}"]
    request = "\r\n".join([*lines, "", ""]).encode()
    counted = 0
    end = time.perf_counter() + SECONDS

    async def poll() -> None:
        nonlocal counted
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 304 " not in head.partition(b"\r\n")[0]:
                raise SystemExit(f"got {head.decode()}, expected 304")
            counted += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(poll() for _ in range(CONNECTIONS)))
    return counted / (time.perf_counter() - begun)


def history(address: str, run: str, folder: Path) -> float:
    """Measure the median milliseconds to load the down-sampled history of a long run."""
    clients = {name: {"reward_mean": 0.1, "weight": 0.25, "failures": {}} for name in ("a", "b", "c", "d")}
    data = json.dumps({"reward_mean": 0.4, "kl": 0.01, "clients": clients, "applied": ["f" * 32] * 16})
    with sqlite3.connect(folder / "runs" / "history.sqlite3") as file:
        rows = ((run, step, 1, float(step), data) for step in range(1, STEPS + 1))
        file.executemany("INSERT INTO metrics (run, step, attempt, at, data) VALUES (?, ?, ?, ?, ?)", rows)
    times = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        reply = httpx.get(f"{address}/v1/runs/{run}/metrics?max_points={POINTS}", headers=bearer(), timeout=START_S)
        times.append(1e3 * (time.perf_counter() - begun))
        if len(reply.json()["points"]) != POINTS:
            raise SystemExit(f"{POINTS} points were expected")
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12, help="pairs of blocks of steps, with polls and without")
    parser.add_argument("--steps", type=int, default=20, help="steps of a block")
    options = parser.parse_args()
    end_children_on_sigterm()
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory(prefix="mor-bench-") as name, serving(Path(name)) as address:
        folder = Path(name)
        run = create(address, folder)
        tag = httpx.get(f"{address}/v1/runs/{run}", headers=bearer(), timeout=START_S).headers["etag"]
        figures: dict[str, dict[str, Any]] = {
            "unchanged": {"connections": CONNECTIONS, "answers_per_second": asyncio.run(unchanged(address, run, tag))},
            "history": {"steps": STEPS, "points": POINTS, "median_ms": history(address, run, folder)},
        }
    os.sched_setaffinity(0, everywhere)
    figures["during_training"] = during_training(options.pairs, options.steps)
    for title, line in figures.items():
        print(title, {key: round(value, 3) if isinstance(value, float) else value for key, value in line.items()})
    print(record("status", figures))


if __name__ == "__main__":
    main()
