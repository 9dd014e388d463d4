"""Influence on recent rewards: by objective, and each client sees only its own."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from mor_core.wire import ClientScore
from mor_router.rewarding.influence import contributions, summary
from mor_router.store import key
from redis.asyncio import Redis

from tests.router.conftest import Api
from tests.router.endpoints import Endpoints, html, quality

pytestmark = pytest.mark.anyio


def line(client: str, weight: float, calibrated: list[float] | None, **more: Any) -> ClientScore:
    return ClientScore(client=client, weight=weight, calibrated=calibrated, **{"status": "ok", **more})


def test_shares_of_the_variance_sum_to_one_and_pulling_against_counts_below_zero() -> None:
    group = [
        line("a", 0.5, [0.0, 2.0, 4.0]),
        line("b", 0.3, [1.0, 0.0, -1.0]),
        line("c", 0.2, [5.0, 5.0, 5.0]),
        line("d", 0.0, None, status="timeout"),
    ]
    found = contributions("helpful", group, 1.0)
    shares = {
        client: summary(client, [contribution]).objectives[0].variance_share for client, contribution in found.items()
    }
    mixture = 0.5 * np.array([0, 2, 4]) + 0.3 * np.array([1, 0, -1]) + 1
    assert shares["a"] == pytest.approx(np.cov(0.5 * np.array([0, 2, 4]), mixture)[0, 1] / mixture.var(ddof=1))
    assert sum(share or 0 for share in shares.values()) == pytest.approx(1)
    assert shares["b"] is not None and shares["b"] < 0
    assert shares["c"] == pytest.approx(0)
    [missed] = summary("d", [found["d"], found["d"]]).objectives
    assert (missed.groups, missed.counted, missed.left_out) == (2, 0, {"timeout": 2})


def test_without_any_variance_there_is_no_share() -> None:
    found = contributions("helpful", [line("a", 1.0, [2.0, 2.0])], 1.0)
    assert summary("a", [found["a"]]).objectives[0].variance_share is None
    assert summary("a", []).objectives == ()


async def test_a_log_of_another_type_is_begun_anew_without_losing_a_group(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("loud"))
    await api.router.resources.redis.set(key("influence", "loud"), "of another type")
    await asyncio.gather(*(api.reward("answer 1", f"answer {number}") for number in range(2, 10)))
    [mine] = (await api.ok("GET", "/v1/clients/loud/influence"))["objectives"]
    assert mine["groups"] == 8


async def test_a_client_sees_its_own_influence_and_no_other(api: Api, endpoints: Endpoints) -> None:
    loud, flat, failing = endpoints.endpoint("loud"), endpoints.endpoint("flat"), endpoints.endpoint("failing")
    token = (await api.enrol(loud))["token"]
    await api.enrol(flat)
    await api.enrol(failing)
    shadow = endpoints.endpoint("shadow")
    await api.enrol(shadow, state="probation")
    loud.score, flat.score = (lambda item, response: quality(response)), (lambda item, response: 1.0)
    failing.broken = html
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
    for objective in ("helpful", "helpful", None):
        await api.reward("answer 1", "answer 5", "answer 3", objective=objective)
    mine = await api.ok("GET", "/v1/clients/loud/influence", token=token)
    assert [(part["objective"], part["groups"], part["counted"]) for part in mine["objectives"]] == [
        ("(none)", 1, 1),
        ("helpful", 2, 2),
    ]
    assert mine["objectives"][1]["mean_weight"] == pytest.approx(0.5)
    assert mine["objectives"][1]["variance_share"] == pytest.approx(1)
    assert mine["since"] > 0
    for name, left_out in (("failing", {"error": 2}), ("shadow", {"shadow": 2}), ("flat", {})):
        found = (await api.ok("GET", f"/v1/clients/{name}/influence"))["objectives"][1]
        assert (found["left_out"], found["variance_share"]) == (left_out, pytest.approx(0))
    assert (await api.call("GET", "/v1/clients/flat/influence", token=token)).status_code == 403
    assert (await api.call("GET", "/v1/clients/nobody/influence")).status_code == 404
    await api.ok("DELETE", "/v1/clients/loud")
    await api.enrol(loud)
    assert (await api.ok("GET", "/v1/clients/loud/influence"))["objectives"] == []


async def test_many_readers_of_a_long_log_cost_one_reading(api: Api, endpoints: Endpoints, redis: Redis) -> None:
    """Any client's token may ask, as often as it likes, while live groups wait for the event loop."""
    token = (await api.enrol(endpoints.endpoint("clinic")))["token"]
    group = contributions("helpful", [line("clinic", 0.5, [0.0, 2.0])], 1.0)["clinic"].model_dump_json()
    await redis.lpush(key("influence", "clinic"), *[group] * 1999)  # type: ignore[misc]

    async def shown() -> set[int]:
        path = "/v1/clients/clinic/influence"
        answers = await asyncio.gather(*(api.ok("GET", path, token=token) for _ in range(24)))
        return {answer["objectives"][0]["groups"] for answer in answers}

    async def sent() -> int:
        return int((await redis.info("stats"))["total_net_output_bytes"])

    whole, before = 1999 * len(group), await sent()
    assert await shown() == {1999}
    await redis.lpush(key("influence", "clinic"), group.replace('"at":1.0', '"at":2.0'))  # type: ignore[misc]
    assert await shown() == {2000}, "a summary follows the log"
    assert await sent() - before < 3 * whole, "the log was read twice, not 48 times"
