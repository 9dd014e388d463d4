"""A whole life of a router with clients that score absurdly or fail: every route answers, and every fit succeeds."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fastapi.responses import JSONResponse

from tests.router.conftest import Api, Start
from tests.router.endpoints import Endpoints, Score, html, noise, quality, words
from tests.router.hostile import unsteady
from tests.router.planted import jsonl, rows, specialist
from tests.router.test_objectives import upload

pytestmark = pytest.mark.anyio


def level_of(*levels: float) -> Score:
    """Make a client whose level jumps between questions, and which prefers better responses by almost nothing."""

    def score(item: dict[str, Any], response: str) -> float:
        level = levels[int(1000 * noise(words(item))) % len(levels)]
        return math.nextafter(level, math.inf) if quality(response) > 0 else level

    return score


ABSURD: dict[str, Score] = {
    "huge": lambda item, response: 1e9 * noise(response),
    "too-huge": lambda item, response: 1e10 * noise(response),
    "tiny": lambda item, response: 5e-324 * (quality(response) > 0),
    "denormal": lambda item, response: 1e-310 * quality(response),
    "constant": lambda item, response: 1e9,
    "zero": lambda item, response: -0.0,
    "unsteady": unsteady(),
    "sometimes-nan": lambda item, response: float("nan") if noise(words(item)) > 0.5 else quality(response),
    "all-nan": lambda item, response: float("nan"),
    "jumping": level_of(0.0, 1e9, -1e9, 1e-300),
    "step": lambda item, response: 1e9 if quality(response) > 2 else 1e-12 * quality(response),
}


async def test_no_fit_refit_honeypot_or_route_fails_because_of_a_clients_scores(
    start: Start, endpoints: Endpoints
) -> None:
    async with start(anchor_share=0.5, quorum=0.1, client_attempts=1) as api:
        for kind in ("chart", "medical"):
            await api.enrol(endpoints.endpoint(kind, specialist(kind)))
        for name, score in ABSURD.items():
            endpoint = endpoints.endpoint(name)
            await api.enrol(endpoint)
            endpoint.score = score
        broken = {"html": html, "down": lambda _: JSONResponse({"detail": "down"}, 503)}
        for name, failure in broken.items():
            endpoint = endpoints.endpoint(name)
            await api.enrol(endpoint)
            endpoint.broken = failure
        await groups(api, None)  # cold start
        await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
        for turn in range(2):
            made = jsonl(rows(24, images=False, seed=turn, start=100 * turn))
            assert (await upload(api, made)).is_success
            fitted = await api.ok("POST", "/v1/objectives/helpful/fit")
            assert {"chart", "medical"} <= set(fitted["models"])
            assert not {"all-nan", "too-huge", *broken} & set(fitted["models"])
            check_finite(fitted)
            await groups(api, "helpful")
            await api.router.trust.honeypots.settled()
        await api.enrol(endpoints.endpoint("detail", ABSURD["jumping"]), state="probation")
        await api.ok("POST", "/v1/objectives/helpful/fit", {"newcomers_only": True})
        await groups(api, {"helpful": 1.0})
        for client in await api.ok("GET", "/v1/clients"):
            check_finite(await api.ok("GET", f"/v1/clients/{client['name']}"))
            check_finite(await api.ok("GET", f"/v1/clients/{client['name']}/influence"))
        body = {"messages": [{"role": "user", "content": "What?"}], "objective": "helpful"}
        check_finite(await api.ok("POST", "/v1/route", body))
        check_finite(await api.ok("GET", "/v1/status"))
        assert " nan" not in (await api.http.get("/metrics")).text.lower().replace("sometimes-nan", "")


async def groups(api: Api, objective: Any) -> None:
    """Have groups rewarded, at the cold start with every fusion."""
    kinds = ("weighted",) if objective else ("weighted", "uniform", "median", "worst", "mean_minus_variance", "gdpo")
    for kind in kinds:
        items = [
            {
                "item_id": f"g{i}",
                "messages": [{"role": "user", "content": f"Read the chart axis: value of bar number {i}"}],
                "responses": [f"answer {value}" for value in (1, -1, 3, 0.5)][: 4 - i % 4],
                "objective": objective,
            }
            for i in range(4)
        ]
        answer = await api.ok("POST", "/v1/reward", {"items": items, "fusion": {"kind": kind}})
        for item in answer["items"]:
            assert item["status"] == "ok", item["detail"]
            assert all(abs(reward) < 1e6 for reward in item["rewards"]), kind
        check_finite(answer)


def check_finite(value: Any) -> None:
    if isinstance(value, float):
        assert math.isfinite(value)
    elif isinstance(value, dict):
        for inner in value.values():
            check_finite(inner)
    elif isinstance(value, list):
        for inner in value:
            check_finite(inner)
