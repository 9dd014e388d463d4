"""Groups that a superseded attempt issued and that come back late count for nothing in the next attempt."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

import pytest
from mor_core.blobs import Blobs
from mor_core.fence import Fence
from mor_core.runs import RunSpec
from mor_core.streams import Streams
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, TokenBlock
from mor_trainer.event_log import EventLog
from mor_trainer.groups.dispatch_queue import DispatchQueue
from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.group_receiver import GroupReceiver
from mor_trainer.groups.group_streams import GroupStreams
from mor_trainer.groups.ledger import Ledger
from mor_trainer.groups.recovery import GroupRecovery
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces
from redis.asyncio import Redis

from tests.trainer.records import order_of, rollout_of
from tests.trainer.stages import reward_record

pytestmark = pytest.mark.anyio
BLOCK = TokenBlock(prompt_token_ids=(1,), response_token_ids=((2,), (3,)), response_logprobs=((-0.5,), (-1.5,)))


async def test_late_results_are_settled_and_neither_trained_on_nor_issued_again(redis: Redis) -> None:
    fence, unfenced = Fence("r", 2), Streams(redis, "r", 100)
    streams, blobs = Streams(redis, "r", 100, fence), Blobs(redis, "r", None, fence)
    spec = RunSpec(name="tiny", model="/m", prompts="/p", group_size=2, groups_per_step=1)
    ledger: Ledger[ScoredGroup] = Ledger("r", order_of(4), 0, 3)
    ledger.advance_version(0)
    first, second = (ledger.group_id(issue.number) for issue in ledger.issue(2, 1e9))
    traces, events, arrived = GroupTraces(), EventLog("r", 2), asyncio.Event()
    evaluations = Evaluations("r", 3, traces, lambda *_: None)
    queue = DispatchQueue(streams, blobs)
    recovery = GroupRecovery(
        "r", spec, cast(Any, []), 60, left_out=0, ledger=ledger, evaluations=evaluations, dispatch_queue=queue,
        group_streams=GroupStreams(redis, fence), traces=traces, events=events, step=lambda: 0, arrived=arrived,
        last_arrival=lambda: receiver.last_arrival,
    )  # fmt: skip
    receiver = GroupReceiver(
        spec, 60, streams=streams, blobs=blobs, ledger=ledger, evaluations=evaluations, recovery=recovery,
        dispatch_queue=queue, arrived=arrived, pinned=None,
    )  # fmt: skip
    digest = await blobs.put(BLOCK.model_dump_json().encode(), first)

    def scored(group: str, attempt: int) -> Any:
        two = {"tokens": digest, "responses": ("two", "2"), "finish_reasons": ("stop", "stop")}
        rollout = rollout_of(group).model_copy(update=two)
        prompt = rollout.prompt.model_copy(update={"run_attempt": attempt})
        return reward_record(rollout.model_copy(update={"prompt": prompt}), (1.0, 2.0))

    def letter(group: str, attempt: int) -> DeadLetter:
        fields = {"stage": "rollout", "stream": "prompts", "reason": "broken", "attempts": 1, "record": "{}"}
        return DeadLetter.model_validate({"run": "r", "group_id": group, "run_attempt": attempt, **fields})

    for attempt in (0, 1):
        await unfenced.publish("rewards", scored(first, attempt), timeout_s=1)
        await unfenced.publish("dead", letter(second, attempt), timeout_s=1)
    readers = [asyncio.create_task(receiver.read_rewards()), asyncio.create_task(receiver.read_dead())]

    async def empty() -> None:
        async with asyncio.timeout(20):
            while await streams.depth("rewards") or await streams.depth("dead"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    try:
        await empty()
        assert receiver.duplicates == 2
        assert set(ledger.outstanding) == {first, second}
        assert ledger.retried == 0
        await unfenced.publish("rewards", scored(first, 2), timeout_s=1)
        await unfenced.publish("dead", letter(second, 2), timeout_s=1)
        await empty()
    finally:
        with contextlib.suppress(asyncio.CancelledError):
            await stop(readers)
    assert set(ledger.outstanding) == {second}
    assert ledger.retried == 1
    taken, _ = ledger.take(1, 1e9)
    assert [group.record.group_id for _, group, _ in taken] == [first]
