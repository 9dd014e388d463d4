"""Groups that fail, are lost or come back at the wrong moment: none is forgotten, and none costs more than it must."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest
from mor_core.blobs import Blobs
from mor_core.datafiles import Prompt
from mor_core.fence import Fence
from mor_core.run_announcements import announce
from mor_core.runs import RunSpec
from mor_core.streams import GROUP_STREAMS, Streams, key
from mor_core.tasks import stop
from mor_core.wire import DeadLetter, Message, PromptRecord, TokenBlock
from mor_trainer.event_log import EventLog
from mor_trainer.groups.dispatch_queue import DispatchQueue
from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.flush_detector import FlushDetector
from mor_trainer.groups.group_receiver import GroupReceiver
from mor_trainer.groups.group_streams import GroupStreams
from mor_trainer.groups.ledger import Ledger
from mor_trainer.groups.liveness import Liveness
from mor_trainer.groups.recovery import GroupRecovery
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from tests.trainer.records import order_of, rollout_of
from tests.trainer.stages import reward_record

pytestmark = pytest.mark.anyio
RUN = "r"
PROMPT = Prompt(id="p", messages=(Message(role="user", content="How many?"),), images={}, domain=None)
BLOCK = TokenBlock(prompt_token_ids=(1,), response_token_ids=((2,), (3,)), response_logprobs=((-0.5,), (-1.5,)))


class Groups:
    """Two outstanding groups of a run, and what issues and receives them."""

    def __init__(self, redis: Redis, *, timeout_s: float = 60, attempts: int = 3) -> None:
        self.fence = Fence(RUN, 1)
        self.streams = Streams(redis, RUN, 100, self.fence)
        self.blobs = Blobs(redis, RUN, None, self.fence)
        self.ledger: Ledger[ScoredGroup] = Ledger(RUN, order_of(4), 0, attempts)
        self.ledger.advance_version(0)
        self.ids = [self.ledger.group_id(issue.number) for issue in self.ledger.issue(2, time.monotonic() + timeout_s)]
        traces, arrived, self.events = GroupTraces(), asyncio.Event(), EventLog(RUN, 1)
        evaluations = Evaluations(RUN, attempts, traces, lambda *_: None)
        spec = RunSpec(name="tiny", model="/m", prompts="/p", group_size=2, groups_per_step=1, max_bad_prompts=1)
        self.queue = DispatchQueue(self.streams, self.blobs)
        self.recovery = GroupRecovery(
            RUN, spec, cast(Any, _Rows()), timeout_s, left_out=0, ledger=self.ledger, evaluations=evaluations,
            dispatch_queue=self.queue, group_streams=GroupStreams(redis, self.fence), traces=traces,
            events=self.events, step=lambda: 0, arrived=arrived, last_arrival=lambda: self.receiver.last_arrival,
        )  # fmt: skip
        self.receiver = GroupReceiver(
            spec, 60, streams=self.streams, blobs=self.blobs, ledger=self.ledger, evaluations=evaluations,
            recovery=self.recovery, dispatch_queue=self.queue, arrived=arrived, pinned=None,
        )  # fmt: skip

    async def find(self, group: str) -> tuple[PromptRecord, Prompt]:
        record = rollout_of(group).prompt
        return record.model_copy(update={"run_attempt": 1}), PROMPT

    def letter(self, group: str) -> DeadLetter:
        return DeadLetter(
            run=RUN, group_id=group, run_attempt=1, stage="rollout", stream="prompts", reason="broken", attempts=1,
            record="{}",
        )  # fmt: skip


class _Rows:
    def __init__(self) -> None:
        self.ids = [f"p{number}" for number in range(4)]

    def __len__(self) -> int:
        return len(self.ids)


@asynccontextmanager
async def running(*work: Any) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        with suppress(asyncio.CancelledError):
            await stop(tasks)


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_group_that_is_added_while_it_is_sent_is_sent_again(redis: Redis) -> None:
    """As after a loss of the queue server: what was just sent is gone."""
    groups, sending, go_on = Groups(redis), asyncio.Event(), asyncio.Event()

    async def find(group: str) -> tuple[PromptRecord, Prompt]:
        sending.set()
        await go_on.wait()
        return await groups.find(group)

    groups.queue.add(groups.ids[0])
    async with running(groups.queue.send(find)):
        await sending.wait()
        groups.queue.add(groups.ids[0])
        go_on.set()

        async def sent_twice() -> bool:
            return await groups.streams.depth("prompts") == 2

        await until(sent_twice)
    assert not groups.queue.waiting


async def test_a_group_that_is_sent_while_the_streams_are_read_is_not_lost(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream may have been read before it was there."""
    groups = Groups(redis, timeout_s=0, attempts=1)
    holding = groups.recovery._group_streams.holding

    async def read_slowly(group_ids: Sequence[str]) -> set[str]:
        found = await holding(group_ids)
        async with running(groups.queue.send(groups.find)):

            async def sent() -> bool:
                return not groups.queue.waiting

            await until(sent)
        return found

    monkeypatch.setattr(groups.recovery._group_streams, "holding", read_slowly)
    groups.queue.add(*groups.ids)
    await groups.recovery.reissue_overdue()
    assert [*groups.ledger.outstanding] == groups.ids
    assert not groups.recovery.given_up


@pytest.mark.parametrize("kind", ["first", "flushed"])
async def test_a_queue_server_that_fails_in_the_middle_of_a_recovery_is_recovered_from_later(
    redis: Redis, kind: str
) -> None:
    """Neither the first clean-up nor the recovery from a loss is taken for done because it was begun."""
    groups, recovered = Groups(redis), list[str]()

    async def announcing() -> None:
        await announce(redis, RUN, "model", fence=groups.fence)

    streams = GroupStreams(redis, groups.fence)
    liveness = Liveness(redis, groups.fence, announcing, streams, lambda: recovered.append("issued again"))
    if kind == "flushed":
        await liveness.check()
        await redis.delete(*await redis.keys(f"mor:{{{RUN}}}:*"))
    try:
        await redis.execute_command("ACL", "SETUSER", "default", "-xtrim")
        with pytest.raises(ResponseError, match="ACL"):
            await liveness.check()
    finally:
        await redis.execute_command("ACL", "SETUSER", "default", "+xtrim")
    await liveness.check()
    assert liveness.cleared.is_set()
    assert recovered == (["issued again"] if kind == "flushed" else [])
    await liveness.check()
    assert len(recovered) <= 1


async def test_a_loss_is_found_although_the_answer_to_the_check_was_lost(redis: Redis) -> None:
    """The client library sends a command again whose answer did not come; the mark is there then."""
    detector = FlushDetector(redis, Fence(RUN, 1))
    assert await detector.check() == "first"
    await redis.delete(key(RUN, "mark"))
    await FlushDetector(redis, Fence(RUN, 1)).check()  # what the lost command did
    assert await detector.check() == "lost"
    assert await detector.check() == "same"


async def test_a_group_that_comes_back_while_overdue_ones_are_looked_for_is_no_failure(redis: Redis) -> None:
    groups = Groups(redis)
    first, second = groups.ids
    groups.recovery.wait_for_clients(first, {"alpha": "away"})
    for name in (first, second):
        groups.ledger.outstanding[name].deadline = 0.0
    looking = asyncio.create_task(groups.recovery.reissue_overdue())
    await asyncio.sleep(0)
    groups.ledger.receive(first, 0, cast(Any, "scored meanwhile"))
    groups.ledger.receive(second, 0, cast(Any, "scored meanwhile"))
    await looking
    assert not groups.ledger.outstanding
    assert groups.ledger.dropped == 0


async def test_a_failed_group_is_issued_again_after_pauses_that_grow(redis: Redis) -> None:
    """A short outage may look like a fault, and must not use up all attempts within milliseconds."""
    groups, waits = Groups(redis, attempts=5), list[float]()
    group = groups.ids[0]
    for _ in range(4):
        groups.recovery.reissue(group, "broken", groups.letter(group))
        assert group not in groups.queue.waiting
        waits.append(groups.ledger.outstanding[group].deadline - time.monotonic())
        groups.ledger.outstanding[group].deadline = 0.0
        await groups.recovery.reissue_overdue()
        assert group in groups.queue.waiting
        groups.queue._waiting.clear()
    assert all(0.4 * 2**n < wait < 1.6 * 2**n for n, wait in enumerate(waits))
    assert groups.ledger.outstanding[group].attempt == 4
    groups.recovery.reissue(group, "broken", groups.letter(group))
    assert groups.ledger.dropped == 1


async def test_a_dead_letter_that_is_read_twice_costs_one_attempt(redis: Redis) -> None:
    """The queue server may fail between a letter and its settlement."""
    groups = Groups(redis)
    await Streams(redis, RUN, 10).publish("dead", groups.letter(groups.ids[0]), timeout_s=1)
    try:
        await redis.execute_command("ACL", "SETUSER", "default", "-xdel")
        with pytest.raises(ResponseError, match="ACL"):
            await groups.receiver.read_dead()
    finally:
        await redis.execute_command("ACL", "SETUSER", "default", "+xdel")
    async with running(groups.receiver.read_dead()):
        await until(lambda: _empty(groups.streams))
    assert groups.ledger.outstanding[groups.ids[0]].attempt == 1


@pytest.mark.parametrize("how", ["given up", "lost"])
async def test_a_dropped_group_leaves_no_blob(redis: Redis, how: str) -> None:
    groups = Groups(redis, attempts=1)
    group = groups.ids[0]
    await groups.blobs.put(BLOCK.model_dump_json().encode(), group)
    async with running(groups.receiver.read_dead()):
        if how == "given up":
            await Streams(redis, RUN, 10).publish("dead", groups.letter(group), timeout_s=1)
        else:
            groups.ledger.outstanding[group].deadline = 0.0
            await groups.recovery.reissue_overdue()
            await groups.receiver.release_given_up()

        async def no_blob() -> bool:
            return not await redis.keys(f"mor:{{{RUN}}}:blob:*")

        await until(no_blob)
    assert groups.ledger.dropped == 1


async def test_a_group_that_comes_back_twice_releases_its_blobs(redis: Redis) -> None:
    groups = Groups(redis)
    digest = await groups.blobs.put(BLOCK.model_dump_json().encode(), groups.ids[0])
    two = {"tokens": digest, "responses": ("two", "2"), "finish_reasons": ("stop", "stop")}
    rollout = rollout_of(groups.ids[0]).model_copy(update=two)
    rollout = rollout.model_copy(update={"prompt": rollout.prompt.model_copy(update={"run_attempt": 1})})
    for _ in range(2):
        await Streams(redis, RUN, 10).publish("rewards", reward_record(rollout, (1.0, 2.0)), timeout_s=1)
    async with running(groups.receiver.read_rewards()):
        await until(lambda: _empty(groups.streams))
    assert groups.receiver.duplicates == 1
    assert not await redis.keys(f"mor:{{{RUN}}}:blob:*")
    assert len(groups.ledger.ready) == 1


async def _empty(streams: Streams) -> bool:
    return not sum([await streams.depth(name) for name in GROUP_STREAMS])
