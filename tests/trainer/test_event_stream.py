"""Stream of a run's events: it resumes without a gap, and no event is cut."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, lines
from tests.trainer.kit import bearer, served

pytestmark = pytest.mark.anyio


async def test_an_event_stream_resumes_without_a_gap(
    settings: ControlSettings, spec: RunSpec, redis: Redis, tmp_path: Path
) -> None:
    async with served(create_app(settings)) as address, httpx.AsyncClient(base_url=address) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        worker = Worker(redis, run, (await claim(http))["attempt"])
        listening = asyncio.create_task(lines(http, run, 2))
        await asyncio.sleep(0.3)
        for step in (1, 2, 3, 4):
            await worker.step(step, 0.1 * step)
        first = await listening
        assert [json.loads(event["data"])["step"] for event in first] == [1, 2]
        assert first[0]["event"] == "step"
        rest = await lines(http, run, 2, first[-1]["id"])
        assert [json.loads(event["data"])["step"] for event in rest] == [3, 4]
        silence = await lines(http, run, 1, rest[-1]["id"], heartbeats=True)
        assert silence[0]["comment"].startswith("ping"), "a heartbeat keeps the stream open"
        for cursor in ("other-run/3", "nonsense"):
            reply = await http.get(f"/v1/runs/{run}/events", headers={"Last-Event-ID": cursor})
            assert reply.status_code == 422
            assert f"is not a cursor of run {run}" in reply.json()["detail"]


async def test_a_line_separator_in_a_response_does_not_cut_its_event(
    settings: ControlSettings, spec: RunSpec, redis: Redis
) -> None:
    async with served(create_app(settings)) as address, httpx.AsyncClient(base_url=address) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        worker = Worker(redis, run, (await claim(http))["attempt"])
        listening = asyncio.create_task(lines(http, run, 1))
        await asyncio.sleep(0.3)
        await worker.report("alert", 1, {"name": "checkpoint_unreadable", "reason": "a\u2028b"})
        (event,) = await listening
        assert json.loads(event["data"])["data"]["reason"] == "a\u2028b"
