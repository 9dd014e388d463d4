"""A run whose groups nobody takes says so, whether or not there is a process that could."""

from __future__ import annotations

from typing import Any

import pytest
from mor_core.stream_consumer import Consumer
from mor_core.streams import Streams
from mor_core.wire import PromptRecord, RolloutRecord, StageName, StreamName
from mor_trainer.groups import wait_alert
from mor_trainer.groups.wait_alert import WaitAlert
from redis.asyncio import Redis

from tests.core.records import prompt, rollout

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("dead", ["never there", "ended", "killed"])
@pytest.mark.parametrize(("stage", "stream"), [("rollout", "prompts"), ("router", "rollouts")])
async def test_groups_that_no_process_takes_raise_an_alert_that_ends_by_itself(
    redis: Redis, run_name: str, monkeypatch: pytest.MonkeyPatch, stage: StageName, stream: StreamName, dead: str
) -> None:
    monkeypatch.setattr(wait_alert, "_STEADY_S", 0.0)
    events = list[dict[str, Any]]()
    alert = WaitAlert(redis, run_name, dict, events.append)
    streams = Streams(redis, run_name, 10)
    consumer: Consumer[PromptRecord | RolloutRecord] = Consumer(streams, stream, stage, 30)
    if dead != "never there":
        await consumer.read(1, 0.01)
    record = prompt(run_name)
    await streams.publish(stream, record if stream == "prompts" else rollout(record), timeout_s=1)
    if dead == "killed":
        (entry,) = await consumer.read(1, 1)
    await alert.check(idle_s=1.0)
    assert not events, "a restart is no reason for an alert"
    await alert.check(idle_s=61.0)
    if dead == "killed":
        assert not events, "it may be at work"
        await redis.xclaim(streams.key(stream), stage, consumer.name, 0, [entry.id], idle=61_000, justid=True)
        await alert.check(idle_s=61.0)
    (raised,) = events
    assert raised["name"] == {"rollout": "waiting_for_engine", "router": "waiting_for_clients"}[stage]
    assert {"rollout": "rollout service (none takes", "router": "router (none takes"}[stage] in raised["reason"]
    living: Consumer[PromptRecord | RolloutRecord] = Consumer(streams, stream, stage, 30)
    while not await living.read(1, 0.05):
        pass
    await alert.check(idle_s=61.0)
    assert events[1:] == [{"name": raised["name"], "reason": "the groups go on", "over": True}]
