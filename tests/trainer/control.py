"""Calls to run control, as people and a training process make them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
from mor_core.runs import RunSpec
from mor_core.streams import Streams
from mor_core.wire import EventRecord
from mor_trainer.event_log import event_id
from redis.asyncio import Redis

from tests.trainer.kit import bearer


async def create(http: httpx.AsyncClient, spec: RunSpec) -> str:
    reply = await http.post("/v1/runs", json=spec.model_dump(mode="json"))
    assert reply.status_code == 202, reply.text
    assert reply.headers["Location"] == f"/v1/runs/{reply.json()['id']}"
    return str(reply.json()["id"])


async def claim(http: httpx.AsyncClient) -> dict[str, Any]:
    reply = await http.post("/v1/runs/claim", json={"worker": "w1"}, headers=bearer("service"))
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


class Worker:
    """Events of a worker, without its training."""

    def __init__(self, redis: Redis, run: str, attempt: int) -> None:
        self._streams = Streams(redis, run, 1000)
        self._run, self._attempt, self.sequence = run, attempt, 0

    async def report(self, kind: Any, step: int, data: dict[str, Any], sequence: int | None = None) -> None:
        if sequence is None:
            self.sequence += 1
        record = EventRecord(
            run=self._run,
            group_id=event_id(self._attempt, sequence or self.sequence),
            stamps={"trainer": time.time()},
            kind=kind,
            step=step,
            data=data,
        )
        await self._streams.publish("events", record, timeout_s=5)

    async def step(self, step: int, reward: float) -> None:
        clients = {"alpha": {"reward_mean": reward, "weight": 1.0, "failures": {}}}
        data = {"reward_mean": reward, "step_seconds": 2.0, "seconds": {}, "clients": clients, "gate_version": 1}
        await self.report("step", step, data)


async def eventually(http: httpx.AsyncClient, path: str, wanted: Any, timeout_s: float = 60) -> Any:
    """Poll ``path`` and return its JSON once ``wanted(json)`` holds."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = (await http.get(path)).raise_for_status().json()
        if wanted(found):
            return found
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.02)


async def lines(
    http: httpx.AsyncClient, run: str, count: int, cursor: str | None = None, *, heartbeats: bool = False
) -> list[dict[str, str]]:
    """Read ``count`` events of the stream, with or without the comments that keep it open."""
    headers = {} if cursor is None else {"Last-Event-ID": cursor}
    found: list[dict[str, str]] = []
    current: dict[str, str] = {}
    async with asyncio.timeout(60), http.stream("GET", f"/v1/runs/{run}/events", headers=headers) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        async for line in reply.aiter_lines():
            name, _, value = line.partition(":")
            value = value.strip()
            if line == "" and current:
                if heartbeats or "comment" not in current:
                    found.append(current)
                current = {}
                if len(found) == count:
                    break
            elif line:
                current[name or "comment"] = value
    return found
