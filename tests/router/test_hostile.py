"""A hostile client beside honest experts loses its weight; a broken one costs no group."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from tests.router.conftest import Api, Start
from tests.router.endpoints import Endpoints
from tests.router.hostile import BROKEN, HOSTILE, Outcome, Plan, live_through
from tests.router.test_objectives import upload

pytestmark = pytest.mark.anyio

_SHORT = Plan(refits=5, anchors=72, calls=4, held_out=96)
"""Enough to find a client that contradicts the labels; one honest about anchors is found only in a whole life."""


class _Caller:
    def __init__(self, api: Api) -> None:
        self._api = api

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        return await self._api.ok(method, path, body)

    async def upload(self, name: str, content: bytes) -> None:
        assert (await upload(self._api, content, name)).status_code == 200

    async def reward_groups(self, items: list[dict[str, Any]], images: dict[str, str]) -> list[dict[str, Any]]:
        return await self._api.reward_groups(items, images)

    async def settled(self) -> None:
        await self._api.router.trust.honeypots.settled()


Life = Callable[[str], AbstractAsyncContextManager[Outcome]]


@pytest.fixture
def life(start: Start, endpoints: Endpoints) -> Life:
    @asynccontextmanager
    async def run(scenario: str) -> AsyncIterator[Outcome]:
        short = {"deadline_s": 0.5} if scenario == "slow" else {}
        async with start(anchor_share=0.2, **short) as api:
            yield await live_through(_Caller(api), endpoints, scenario, _SHORT if scenario == "flipping" else Plan())

    return run


@pytest.mark.parametrize(
    "scenario", [name if name == "flipping" else pytest.param(name, marks=pytest.mark.slow) for name in HOSTILE]
)
async def test_a_hostile_client_loses_its_weight(life: Life, scenario: str) -> None:
    async with life(scenario) as outcome:
        assert max(weight for name, weight in outcome.weights.items() if name.startswith("bad")) < 0.02
        assert outcome.accuracy > 0.75
        assert outcome.lost == 0
        honest = [state for name, state in outcome.states.items() if not name.startswith("bad")]
        assert honest.count("active") >= len(honest) - 1  # one false alarm, which has 2 % in a life, is no failure


@pytest.mark.slow
@pytest.mark.parametrize("scenario", BROKEN)
async def test_a_broken_client_costs_no_group(life: Life, scenario: str) -> None:
    async with life(scenario) as outcome:
        assert outcome.lost == 0
        assert outcome.accuracy > 0.75
