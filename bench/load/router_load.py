"""Load on replicas of the router, by number of clients: groups a second, time of a call, cores."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

import httpx
import numpy as np
from cryptography.fernet import Fernet
from mor_core.auth import hash_token
from mor_core.images import sha256
from PIL import Image

from load.ladder import Step, climb, summary
from load.reward_clients import TOKEN
from tests.conftest import Valkey

GROUPS, RESPONSES, QUESTIONS = 8, 8, 64
"""Groups of a call, responses of a group, and questions, each with a picture."""
PICTURE = 224
"""Pixels of a picture's side."""
BOUND_S = 1.0
"""Longest time of the slowest of a hundred calls."""
_ADMIN = "the-bench-is-admin-here"
_ANCHORS = 64
_START_S = 120.0


def measure(clients: int, replicas: int, seconds: float, most: int) -> dict[str, Any]:
    """Measure one arrangement."""
    with tempfile.TemporaryDirectory(prefix="mor-load-") as name, reward_clients() as address:
        valkey = Valkey(Path(name))
        try:
            with routers(Path(name), valkey.url, replicas) as (urls, processes):
                steps = asyncio.run(_loaded(urls, processes, address, clients, seconds, most))
        finally:
            valkey.kill()
    return {"clients": clients, "replicas": replicas, **summary(steps, BOUND_S)}


async def _loaded(
    urls: Sequence[str], processes: Sequence[int], address: str, clients: int, seconds: float, most: int
) -> list[Step]:
    """Enrol the clients, have each question rewarded once at every replica, and raise the load."""
    questions = [_question(number) for number in range(QUESTIONS)]
    async with _callers(urls) as callers:
        await _enrol(callers[0], address, clients)
        for caller in callers:
            for first in range(0, QUESTIONS, GROUPS):
                await _reward(caller, questions[first : first + GROUPS], first, pictures=True)
        turns = cycle(callers)

        async def call(number: int) -> None:
            first = number * GROUPS % QUESTIONS
            await _reward(next(turns), questions[first : first + GROUPS], number)

        return await climb(call, processes, seconds=seconds, bound_s=BOUND_S, most=most)


@contextlib.contextmanager
def reward_clients() -> Iterator[str]:
    """Run the process of the clients; yield its address."""
    command = [sys.executable, str(Path(__file__).with_name("reward_clients.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if not (address := process.stdout.readline().strip()):
                raise SystemExit("the process of the clients ended; its reason is above")
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def routers(folder: Path, redis_url: str, replicas: int) -> Iterator[tuple[list[str], list[int]]]:
    """Run replicas of the router; yield their addresses and processes."""
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps([{"name": "bench", "scope": "admin", "sha256": hash_token(_ADMIN)}]))
    environment = os.environ | {
        "MOR_REDIS_URL": redis_url,
        "MOR_TOKENS_FILE": str(tokens),
        "MOR_SECRET_KEY": Fernet.generate_key().decode(),
        "MOR_ALLOW_LOOPBACK": "true",
        "MOR_WORKER": "false",
        "OMP_NUM_THREADS": "1",
    }
    running: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(replicas):
            own = {"MOR_AUDIT_LOG": str(folder / f"audit-{number}.jsonl")}
            port_file = str(folder / f"port-{number}")
            command = [sys.executable, "-m", "mor_router", "serve", "--host", "127.0.0.1", "--port", "0"]
            with (folder / f"router-{number}.log").open("wb") as log:
                process = subprocess.Popen(
                    [*command, "--port-file", port_file], env=environment | own, stdout=log, stderr=log
                )
            running.append(process)
        yield [_address(folder, number, one) for number, one in enumerate(running)], [one.pid for one in running]
    finally:
        for one in running:
            one.terminate()
        for one in running:
            one.wait(timeout=60)


def _address(folder: Path, number: int, process: subprocess.Popen[bytes]) -> str:
    file, deadline = folder / f"port-{number}", time.monotonic() + _START_S
    while not file.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"a router did not start:\n{(folder / f'router-{number}.log').read_text()[-2000:]}")
        time.sleep(0.1)
    return file.read_text().strip()


@contextlib.asynccontextmanager
async def _callers(urls: Sequence[str]) -> AsyncIterator[list[httpx.AsyncClient]]:
    headers = {"Authorization": f"Bearer {_ADMIN}"}
    async with contextlib.AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                httpx.AsyncClient(base_url=url, headers=headers, timeout=120, trust_env=False)
            )
            for url in urls
        ]


async def _enrol(http: httpx.AsyncClient, address: str, clients: int) -> None:
    for number in range(clients):
        body = {"name": f"client-{number}", "url": f"{address}/{number}", "domains": "any", "token": TOKEN}
        (await http.post("/v1/clients", json={**body, "state": "probation"})).raise_for_status()
    objective = {"name": "helpful", "text": "Answer what was asked."}
    (await http.post("/v1/objectives", json=objective)).raise_for_status()
    rows = "".join(json.dumps(row) + "\n" for row in _anchors())
    ndjson = {"Content-Type": "application/x-ndjson"}
    (await http.put("/v1/objectives/helpful/anchors", content=rows, headers=ndjson)).raise_for_status()
    (await http.post("/v1/objectives/helpful/fit")).raise_for_status()


def _anchors() -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(0)
    for index in range(_ANCHORS):
        worse, better = sorted(random.normal(0, 1.5, size=2).round(3).tolist())
        row = {"id": f"a{index}", "prompt": f"Question {index}: how many bars has the chart?", "domain": "load"}
        yield {**row, "chosen": f"answer {better + 0.001}", "rejected": f"answer {worse}"}


def _question(number: int) -> tuple[dict[str, Any], dict[str, str]]:
    """Make a group's prompt, and its picture in base64 by hash."""
    content = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, size=(PICTURE // 8, PICTURE // 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((PICTURE, PICTURE)).save(content, "JPEG", quality=90)
    digest = sha256(content.getvalue())
    parts = [
        {"type": "image_url", "image_url": {"url": f"sha256:{digest}"}},
        {"type": "text", "text": f"Question {number}: how many bars has the chart?"},
    ]
    message = {"role": "user", "content": parts}
    return {"messages": [message], "objective": "helpful"}, {digest: base64.b64encode(content.getvalue()).decode()}


async def _reward(
    http: httpx.AsyncClient,
    questions: Sequence[tuple[dict[str, Any], dict[str, str]]],
    number: int,
    *,
    pictures: bool = False,
) -> None:
    """Have groups of new responses rewarded. ``pictures``: send them; later calls name what the router has."""
    random = Random(number)
    items = [
        {
            **prompt,
            "item_id": f"q{index}",
            "responses": [f"answer {random.gauss(0, 1.5):.4f}" for _ in range(RESPONSES)],
        }
        for index, (prompt, _) in enumerate(questions)
    ]
    images = {digest: content for _, shown in questions for digest, content in shown.items()} if pictures else {}
    answer = await http.post("/v1/reward", json={"items": items, "images": images})
    answer.raise_for_status()
    failed = [item["detail"] for item in answer.json()["items"] if item["status"] != "ok"]
    if failed:
        raise SystemExit(f"the router gave no reward: {failed[0]}")
