"""The reward stage: every group leaves once, as a reward or as a dead letter with the reasons."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mor_core.blobs import Blobs
from mor_core.run_announcements import announce, withdraw
from mor_core.stream_consumer import Consumer
from mor_core.streams import RECORD_TYPES, StreamName, Streams
from mor_core.wire import (
    DeadLetter,
    ImagePart,
    Message,
    PromptRecord,
    Record,
    RewardRecord,
    RolloutRecord,
    Sampling,
    TextPart,
    WeightsRef,
)
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from tests.router.conftest import Api, Start, eventually
from tests.router.endpoints import Endpoints, html
from tests.router.planted import picture

pytestmark = pytest.mark.anyio


def rollout(run: str, group_id: str, responses: tuple[str, ...], image: str | None = None) -> RolloutRecord:
    parts: tuple[Any, ...] = (TextPart(text="Which answer is best?"),)
    if image is not None:
        parts = (ImagePart.of(image), *parts)
    prompt = PromptRecord(
        run=run,
        group_id=group_id,
        prompt_id=group_id,
        messages=(Message(role="user", content=parts),),
        sampling=Sampling(group_size=len(responses), max_tokens=4),
        weights=WeightsRef(version=3),
    )
    return RolloutRecord(
        run=run,
        group_id=group_id,
        trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        stamps=prompt.stamped("rollout"),
        prompt=prompt,
        responses=responses,
        finish_reasons=("stop",) * len(responses),
        tokens="0" * 64,
        weights_version=3,
        image_tokens=4,
        pixels=None,
    )


async def all_of(redis: Redis, run: str, name: StreamName) -> list[Any]:
    entries: Any = await redis.xrange(Streams(redis, run, 256).key(name))
    return [RECORD_TYPES[name].model_validate_json(fields[b"record"]) for _, fields in entries]


async def count(redis: Redis, run: str, **wanted: int) -> None:
    side = Streams(redis, run, 256)

    async def reached() -> bool:
        found = {name: await side.depth(name) for name in wanted}  # type: ignore[arg-type]
        assert all(found[name] <= wanted[name] for name in wanted if name != "rollouts"), found
        return found == wanted

    await eventually(reached)


@asynccontextmanager
async def working(start: Start, run: str, **changes: Any) -> AsyncIterator[tuple[Api, Streams]]:
    async with start(worker=True, **changes) as api:
        await announce(api.router.resources.redis, run, "model")
        yield api, Streams(api.router.resources.redis, run, 256)
        await withdraw(api.router.resources.redis, run)


async def publish(side: Streams, *records: Record) -> None:
    for record in records:
        await side.publish("rollouts", record, timeout_s=5)


async def test_groups_become_rewards_with_every_clients_part(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name) as (api, side):
        good, shadow = endpoints.endpoint("good"), endpoints.endpoint("shadow")
        await api.enrol(good)
        await api.enrol(shadow, state="probation")
        digest = await Blobs(redis, run_name).put(picture("chart", 1), "g1")
        sent = rollout(run_name, "g1", ("answer 1", "answer 4", "answer 2"), digest)
        await publish(side, sent)
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)
        [record] = await all_of(redis, run_name, "rewards")
        assert isinstance(record, RewardRecord)
        assert (record.rollout, record.group_id, record.trace) == (sent, "g1", sent.trace)
        assert set(record.stamps) == {"rollout", "router"}
        assert record.rewards[0] < record.rewards[2] < record.rewards[1]
        assert (record.gate_version, record.fusion) == (0, "weighted")
        line, other = record.clients
        assert (line.client, line.status, line.raw) == ("good", "ok", (1.0, 4.0, 2.0))
        assert (line.weight, line.gate_weight) == (1.0, 1.0)
        assert line.standardised is not None
        assert line.calibrated == pytest.approx(record.rewards)
        assert line.seconds is not None
        assert line.seconds > 0
        assert line.model is not None
        assert (other.client, other.status, other.weight) == ("shadow", "shadow", 0.0)
        assert set(good.images) >= {digest}


async def test_waiting_groups_share_a_request(start: Start, endpoints: Endpoints, redis: Redis, run_name: str) -> None:
    async with working(start, run_name, batch_groups=8, batches_in_flight=1) as (api, side):
        good = endpoints.endpoint("good")
        good.delay_s = 0.2
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 2")) for i in range(17)))
        await api.enrol(good)
        await count(redis, run_name, rollouts=0, rewards=17, dead=0)
        assert {record.group_id for record in await all_of(redis, run_name, "rewards")} == {f"g{i}" for i in range(17)}
        assert [len(call["items"]) for call in good.calls] == [8, 8, 1]


async def test_without_a_quorum_only_the_failed_clients_are_called_again(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name, quorum=1.0, client_attempts=1) as (api, side):
        good, flaky = endpoints.endpoint("good"), endpoints.endpoint("flaky")
        await api.enrol(good)
        await api.enrol(flaky)
        flaky.broken, flaky.mend_after = html, 1
        await publish(side, rollout(run_name, "g1", ("answer 1", "answer 2")))
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)
        assert (len(good.calls), len(flaky.calls)) == (1, 2)


async def test_a_group_that_makes_its_client_fail_becomes_a_dead_letter_with_the_reasons(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    """The groups that the client scores meanwhile all get their rewards, also those that shared a request at first."""
    changes = {"quorum_attempts": 2, "outage_wait_s": 0.5, "circuit_least_calls": 100, "client_attempts": 1}
    async with working(start, run_name, **changes) as (api, side):
        bad = endpoints.endpoint("bad")
        await api.enrol(bad)
        bad.broken = lambda body: html(body) if "poison" in json.dumps(body) else None
        poison = [rollout(run_name, f"g{i}", ("poison 1", "poison 2")) for i in range(3)]
        fine = [rollout(run_name, f"fine-{i}", ("answer 1", "answer 2")) for i in range(30)]
        await publish(side, *poison, *fine[:3])
        for one in fine[3:]:
            await asyncio.sleep(0.1)
            await publish(side, one)
        await count(redis, run_name, rollouts=0, rewards=30, dead=3)
        letters = await all_of(redis, run_name, "dead")
        assert all(isinstance(letter, DeadLetter) for letter in letters)
        assert {letter.group_id for letter in letters} == {"g0", "g1", "g2"}
        assert "held 0.00 of the gate's weight, 0.5 is wanted" in letters[0].reason
        assert "bad: error, " in letters[0].reason
        assert (letters[0].stage, letters[0].stream) == ("router", "rollouts")
        assert letters[0].attempts >= 2
        assert (await api.ok("GET", "/v1/clients/bad"))["client"]["state"] == "active"  # nobody could replace it
        assert json.loads(letters[0].record)["group_id"] == letters[0].group_id


async def test_a_group_is_counted_as_dead_once_it_is_among_the_dead_letters(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    def counted() -> float:
        return REGISTRY.get_sample_value("mor_router_groups_total", {"outcome": "dead"}) or 0.0

    before = counted()
    async with working(start, run_name, stream_bound=2) as (api, side):
        await api.enrol(endpoints.endpoint("good"))
        for _ in range(2):
            await redis.xadd(side.key("dead"), {"record": "a letter"})
        await publish(side, rollout(run_name, "g1", ("answer 1", "answer 2"), "0" * 64))
        await asyncio.sleep(1)
        assert counted() == before
        await redis.xtrim(side.key("dead"), maxlen=0, approximate=False)
        await count(redis, run_name, rollouts=0, rewards=0, dead=1)

        async def is_counted() -> bool:
            return counted() == before + 1

        await eventually(is_counted)


async def test_a_group_whose_image_is_gone_becomes_a_dead_letter(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name, quorum_attempts=1) as (api, side):
        await api.enrol(endpoints.endpoint("good"))
        await publish(side, rollout(run_name, "gone", ("answer 1", "answer 2"), "f" * 64))
        await publish(side, rollout(run_name, "fine", ("answer 1", "answer 2")))
        await count(redis, run_name, rollouts=0, rewards=1, dead=1)
        [letter] = await all_of(redis, run_name, "dead")
        assert letter.group_id == "gone"
        assert "blob ffffffffffff" in letter.reason


async def test_groups_wait_while_no_client_is_active(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name) as (api, side):
        await publish(side, rollout(run_name, "g1", ("answer 1", "answer 2")))
        await asyncio.sleep(1.5)
        await count(redis, run_name, rollouts=1, rewards=0, dead=0)
        await api.enrol(endpoints.endpoint("good"))
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)


async def test_groups_of_a_crashed_router_are_scored_by_another(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    good = endpoints.endpoint("good")
    async with start() as api:
        await api.enrol(good)
    side = Streams(redis, run_name, 256)
    dead: Consumer[RolloutRecord] = Consumer(side, "rollouts", "router", lease_s=1)
    await dead.read(1, 0.01)
    await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 2")) for i in range(3)))
    assert len(await dead.read(8, 1)) == 3  # taken, and then the process is gone
    async with working(start, run_name, lease_s=1) as (_, _side):
        await count(redis, run_name, rollouts=0, rewards=3, dead=0)


async def test_a_withdrawn_run_rests_until_it_is_announced_again(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name) as (api, side):
        await api.enrol(endpoints.endpoint("good"))
        stage = api.router.reward_stage

        async def followed() -> bool:
            return stage.runs == [run_name]

        async def stopped() -> bool:
            return stage.runs == []

        await eventually(followed)
        await withdraw(redis, run_name)
        await eventually(stopped)
        await publish(side, rollout(run_name, "g1", ("answer 1", "answer 2")))
        await asyncio.sleep(0.5)
        await count(redis, run_name, rollouts=1, rewards=0, dead=0)
        await announce(redis, run_name, "model")
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)


async def test_two_routers_score_each_group_once(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    good = endpoints.endpoint("good")
    async with working(start, run_name) as (api, side), start(worker=True):
        await api.enrol(good)
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 2")) for i in range(30)))
        await count(redis, run_name, rollouts=0, rewards=30, dead=0)
        assert len({record.group_id for record in await all_of(redis, run_name, "rewards")}) == 30


async def test_no_reward_is_lost_while_the_stream_is_full(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name, stream_bound=4) as (api, side):
        await api.enrol(endpoints.endpoint("good"))
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 2")) for i in range(9)))
        await count(redis, run_name, rewards=4, dead=0)
        trainer: Consumer[RewardRecord] = Consumer(side, "rewards", "trainer", lease_s=30)
        seen = set()
        async with asyncio.timeout(10):
            while len(seen) < 9:
                for entry in await trainer.read(2, 0.5):
                    seen.add(entry.record.group_id)
                    await trainer.settle(entry)
        assert seen == {f"g{i}" for i in range(9)}


async def test_status_has_runs_clients_and_embedder(start: Start, endpoints: Endpoints, run_name: str) -> None:
    async with working(start, run_name) as (api, _):
        await api.enrol(endpoints.endpoint("good"))

        async def followed() -> bool:
            return run_name in (await api.ok("GET", "/v1/status"))["runs"]

        await eventually(followed)
        status = await api.ok("GET", "/v1/status")
        assert status["embedder"] == "hashed-words-256+colours-and-edges-64"
        assert "set MOR_EMBED_TEXT_MODEL" in status["embedder_note"]
        assert [(line["client"]["name"], line["circuit"]) for line in status["clients"]] == [("good", "closed")]
