"""Events that the history has not confirmed: a checkpoint keeps them, and the next attempt sends them first."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from mor_core.runs import Heartbeat, RunSpec, RunState
from mor_core.streams import Streams
from mor_core.wire import EventRecord
from mor_trainer import event_log
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.event_log import EventLog, event_id
from redis.asyncio import Redis

from tests.trainer.kit import running

pytestmark = pytest.mark.anyio


def an_event(attempt: int, number: int, step: int, **changes: Any) -> EventRecord:
    return EventRecord(
        run="r", group_id=event_id(attempt, number), stamps={"trainer": 1.0}, kind="step", step=step, data={"kl": 0.1}
    ).model_copy(update=changes)


async def test_events_of_earlier_attempts_are_sent_first_and_kept_until_an_own_one_is_seen(redis: Redis) -> None:
    earlier = [an_event(1, 8, 3), an_event(2, 1, 4)]
    foreign = [an_event(1, 9, 4, run="other"), an_event(3, 1, 4), an_event(4, 7, 4), an_event(1, 1, 1, group_id="x")]
    log, side = EventLog("r", 3), Streams(redis, "r", 100)
    log.add("state", 4, {"name": "resumed", "from_step": 4})
    log.carry([*earlier, *foreign])
    ids = ["000001-00000008", "000002-00000001", "000003-00000001"]
    assert [event.group_id for event in log.untold()] == ids
    sending = asyncio.create_task(log.send(side))
    async with asyncio.timeout(5):
        await log.drain()
    sending.cancel()
    sent = [EventRecord.model_validate_json(fields[b"record"]) for _, fields in await redis.xrange(side.key("events"))]
    assert [event.group_id for event in sent] == ids
    log.seen(0)
    assert [event.group_id for event in log.untold()] == ids, "the history has seen none of this attempt"
    log.seen(1)
    assert log.all_seen


def test_a_checkpoint_leaves_samples_out_before_it_leaves_steps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "_CARRIED_BYTES", 4000)
    log = EventLog("r", 1)
    for step in range(1, 100):
        log.add("samples", step, {"groups": ["x" * 2000]})
        log.add("step", step, {"kl": 0.1})
    carried = log.untold()
    assert {event.kind for event in carried} == {"step"}
    steps = [event.step for event in carried]
    assert steps == list(range(100 - len(steps), 100)), "the newest, in their order"
    assert sum(len(event.model_dump_json()) for event in carried) <= 4000


async def test_the_history_has_each_step_once_after_events_came_again(settings: ControlSettings, redis: Redis) -> None:
    del redis
    app = create_app(settings)
    async with running(app):
        runs, history = app.state.runs, app.state.history
        run = runs.create(RunSpec(name="r", model="/m", prompts="/p", steps=100))
        runs.claim("worker")
        told = [an_event(1, number, number, run=run) for number in (1, 2)]
        untold = [an_event(1, number, number, run=run) for number in (3, 4)]
        assert all(history.add(event) for event in told)
        runs.beat(run, Heartbeat(attempt=1, state=RunState.queued))
        assert runs.claim("worker").attempt == 2
        path = {"name": "resumed", "from_step": 4, "checkpoint": "/runs/r/checkpoints/step-00000004"}
        resumed = an_event(2, 1, 4, run=run, kind="state", data=path)
        later = an_event(2, 2, 5, run=run)
        assert [history.add(event) for event in (*told, *untold, resumed, later)] == [
            False,
            False,
            True,
            True,
            True,
            True,
        ]
        assert [point.step for point in history.metrics(run, 0, 100).points] == [1, 2, 3, 4, 5]
        assert [(one.step, one.path) for one in history.checkpoints(run)] == [(4, path["checkpoint"])]
        written = an_event(2, 3, 6, run=run, kind="checkpoint", data={"path": "/6", "seconds": 1.0})
        again = an_event(2, 4, 6, run=run, kind="state", data={"name": "resumed", "from_step": 6, "checkpoint": "/6"})
        assert [history.add(event) for event in (written, again, untold[0])] == [True, True, False]
        assert [one.step for one in history.checkpoints(run)] == [4, 6]
