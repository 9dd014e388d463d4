"""An outage of a client is a wait: no group is lost, no attempt is used, and the groups of others pass."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator
from typing import Any

import pytest
from mor_core.outage_waits import StageWait, read_waits
from mor_core.server_clock import SERVER_CLOCK
from mor_core.streams import Streams
from mor_core.wire import DeadLetter, Message, RolloutRecord
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from tests.router.conftest import Start, eventually
from tests.router.endpoints import Endpoint, Endpoints
from tests.router.hostile import constant
from tests.router.planted import KINDS, jsonl, rows
from tests.router.test_objectives import upload
from tests.router.test_reward_stage import all_of, count, publish, rollout, working

pytestmark = pytest.mark.anyio

PATIENT = {"circuit_open_s": 15.0, "probe_interval_s": 15.0, "group_retry_s": 0.5}
"""The default times of a circuit, in place of the short ones of other tests."""


@pytest.fixture
def away() -> Iterator[Endpoints]:
    """A server of its own, which a test can restart."""
    server = Endpoints()
    yield server
    server.stop()


async def waits(redis: Redis, run: str) -> list[StageWait]:
    await SERVER_CLOCK.read(redis)
    return await read_waits(redis, run)


async def deliveries(redis: Redis, side: Streams) -> set[int]:
    """Return how often the unsettled groups count as delivered."""
    found: Any = await redis.xpending_range(side.key("rollouts"), "router", min="-", max="+", count=1000)
    return {int(entry["times_delivered"]) for entry in found}


def wanting_all(record: RolloutRecord) -> RolloutRecord:
    """Return a group of a deterministic run."""
    return record.model_copy(update={"prompt": record.prompt.model_copy(update={"all_clients": True})})


async def restart(server: Endpoints, seconds: float) -> float:
    """Restart a server that is down for so long; return when it was up again."""
    await asyncio.to_thread(server.stop)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(server.start)
    return time.monotonic()


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_restart_of_a_client_costs_no_group_and_no_attempt(
    start: Start, endpoints: Endpoints, away: Endpoints, redis: Redis, run_name: str, deterministic: bool
) -> None:
    """The outage is longer than both attempts of a group would last. A run that is not deterministic needs 0.9."""
    quorum = 0.5 if deterministic else 0.9
    async with working(start, run_name, quorum=quorum, quorum_attempts=2, **PATIENT) as (api, side):
        for endpoint in (endpoints.endpoint("one"), endpoints.endpoint("two"), away.endpoint("away")):
            await api.enrol(endpoint)
        sent = [rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(40)]
        restarting = asyncio.create_task(restart(away, 8))
        await asyncio.sleep(0.5)
        await publish(side, *(wanting_all(record) if deterministic else record for record in sent))
        await asyncio.sleep(4)
        await count(redis, run_name, rollouts=40, rewards=0, dead=0)
        assert await deliveries(redis, side) <= {0, 1}

        async def all_wait() -> bool:
            found = await waits(redis, run_name)
            return [(wait.stage, {*wait.missing}, wait.groups) for wait in found] == [("router", {"away"}, 40)]

        await eventually(all_wait)
        assert REGISTRY.get_sample_value("mor_router_waiting_groups") == 40
        back = await restarting
        await count(redis, run_name, rollouts=0, rewards=40, dead=0)
        assert time.monotonic() - back < 10
        print(f"seconds from the client's return to the last reward: {time.monotonic() - back:.1f}")
        for record in await all_of(redis, run_name, "rewards"):
            assert [line.status for line in record.clients] == ["ok"] * 3

        async def over() -> bool:
            return not await waits(redis, run_name) and REGISTRY.get_sample_value("mor_router_waiting_groups") == 0

        await eventually(over)
        assert {client["state"] for client in await api.ok("GET", "/v1/clients")} == {"active"}


async def test_a_deterministic_run_waits_for_a_client_that_others_do_without(
    start: Start, endpoints: Endpoints, away: Endpoints, redis: Redis, run_name: str
) -> None:
    """Its budget is spent, so that it is on probation, and the other groups are rewarded without it."""
    changes = {"quorum": 0.9, "outage_wait_s": 0.5, "client_attempts": 1, "circuit_least_calls": 2}
    async with working(start, run_name, **changes) as (api, side):
        for endpoint in (endpoints.endpoint("one"), endpoints.endpoint("two"), away.endpoint("away")):
            await api.enrol(endpoint)
        await asyncio.to_thread(away.stop)
        await publish(side, wanting_all(rollout(run_name, "all", ("answer 1", "answer 3"))))
        await publish(side, *(rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(10)))
        await count(redis, run_name, rollouts=1, rewards=10, dead=0)
        assert (await api.ok("GET", "/v1/clients/away"))["client"]["state"] == "probation"
        await asyncio.sleep(1)
        await count(redis, run_name, rollouts=1, rewards=10, dead=0)
        await asyncio.to_thread(away.start)
        await count(redis, run_name, rollouts=0, rewards=11, dead=0)
        record = (await all_of(redis, run_name, "rewards"))[-1]
        assert {line.client: line.status for line in record.clients} == {"one": "ok", "two": "ok", "away": "ok"}


def failing(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the answer of a service whose model fails: each item is an error, in an answer that is good."""
    return [item | {"status": "error", "scores": None, "detail": "out of memory"} for item in items]


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_model_that_fails_at_every_group_is_an_outage(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str, deterministic: bool
) -> None:
    """It lasts longer than both attempts of a group would. A run that is not deterministic has this client alone."""
    async with working(start, run_name, quorum_attempts=2, group_retry_s=0.2) as (api, side):
        broken = endpoints.endpoint("broken")
        await api.enrol(broken)
        if deterministic:
            await api.enrol(endpoints.endpoint("one"))
        broken.mangle = failing
        sent = [rollout(run_name, f"g{i}", ("answer 1", "answer 3")) for i in range(4)]
        await publish(side, *(wanting_all(record) if deterministic else record for record in sent))
        await asyncio.sleep(4)
        await count(redis, run_name, rollouts=4, rewards=0, dead=0)
        [wait] = await waits(redis, run_name)
        assert "out of memory" in wait.missing["broken"]
        broken.mangle = None
        await count(redis, run_name, rollouts=0, rewards=4, dead=0)
        for record in await all_of(redis, run_name, "rewards"):
            assert {line.status for line in record.clients} == {"ok"}


async def test_a_group_that_a_client_cannot_score_among_others_is_given_up_by_a_deterministic_run(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name, quorum_attempts=2, group_retry_s=0.2) as (api, side):
        broken = endpoints.endpoint("broken", lambda _, response: math.nan if "poison" in response else 1.0)
        for endpoint in (broken, endpoints.endpoint("one")):
            await api.enrol(endpoint)
        await publish(side, wanting_all(rollout(run_name, "bad", ("poison 1", "poison 2"))))
        for number in range(30):
            await asyncio.sleep(0.1)
            await publish(side, wanting_all(rollout(run_name, f"g{number}", ("answer 1", "answer 3"))))
        await count(redis, run_name, rollouts=0, rewards=30, dead=1)
        [letter] = await all_of(redis, run_name, "dead")
        assert isinstance(letter, DeadLetter)
        assert letter.group_id == "bad"
        assert "broken: error" in letter.reason


async def test_groups_of_an_objective_pass_those_that_wait_for_the_expert_of_another(
    start: Start, endpoints: Endpoints, away: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name, group_retry_s=0.2, client_attempts=1) as (api, side):
        others: list[Endpoint] = [endpoints.endpoint(f"constant-{i}", constant()) for i in range(4)]
        expert = away.endpoint("expert")
        for endpoint in [*others, expert]:
            await api.enrol(endpoint)
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
        assert (await upload(api, jsonl(rows(48, images=False)), "helpful")).is_success
        await api.ok("POST", "/v1/objectives/helpful/fit")

        def groups(prefix: str, objective: str | None) -> list[RolloutRecord]:
            question = Message(role="user", content=KINDS["chart"].format(1))
            found = [rollout(run_name, f"{prefix}{i}", ("answer 1", "answer 3")) for i in range(60)]
            asked = {"objective": objective, "messages": (question,)}
            return [r.model_copy(update={"prompt": r.prompt.model_copy(update=asked)}) for r in found]

        async def seconds_for_sixty(rewards: int, waiting: int) -> float:
            began = time.monotonic()
            await publish(side, *groups(f"after-{rewards}-", None))
            await count(redis, run_name, rollouts=waiting, rewards=rewards, dead=0)
            return time.monotonic() - began

        await asyncio.to_thread(away.stop)
        await seconds_for_sixty(60, 0)  # which also opens the circuit
        alone_s = await seconds_for_sixty(120, 0)
        await publish(side, *groups("waiting-", "helpful"))
        beside_s = await seconds_for_sixty(180, 60)
        print(f"seconds for 60 groups: {alone_s:.2f} alone, {beside_s:.2f} beside 60 that wait")
        assert beside_s < 3 * alone_s + 2
        await asyncio.to_thread(away.start)
        await count(redis, run_name, rollouts=0, rewards=240, dead=0)


async def test_a_run_without_an_active_client_tells_what_it_waits_for(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    async with working(start, run_name) as (api, side):
        await publish(side, rollout(run_name, "g1", ("answer 1", "answer 2")))

        async def told() -> bool:
            return any("active clients" in wait.missing for wait in await waits(redis, run_name))

        await eventually(told)
        await api.enrol(endpoints.endpoint("good"))
        await count(redis, run_name, rollouts=0, rewards=1, dead=0)
