"""Run control passes questions and labels of audits between the dashboard and the real router."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest
from mor_router.app import create_app as create_router
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from pydantic import AnyHttpUrl
from redis.asyncio import Redis

from tests.router.test_audits import audit
from tests.settings import router_settings
from tests.trainer.kit import bearer, running

pytestmark = pytest.mark.anyio


async def test_a_labeller_labels_through_run_control(
    settings: ControlSettings, redis_url: str, redis: Redis, tokens_file: Path, tmp_path: Path
) -> None:
    app = create_router(router_settings(redis_url, tokens_file, tmp_path))
    async with running(app) as router:
        body = {"name": "helpful", "text": "Answer what was asked."}
        (await router.post("/v1/objectives", json=body, headers=bearer("admin"))).raise_for_status()
        await app.state.router.trust.audits.add("helpful", audit(time.time()))
        control = create_app(settings.model_copy(update={"router_url": AnyHttpUrl("http://r")}), router._transport)
        async with running(control) as http:
            labeller = bearer("labeller")
            [line] = (await http.get("/v1/audits", headers=labeller)).raise_for_status().json()
            assert (line["objective"], line["waiting"], line["labelled_by"]) == ("helpful", 1, "people")
            shown = (await http.get("/v1/audits/helpful/next", headers=labeller)).raise_for_status().json()
            place = f"/v1/audits/helpful/{shown['audit']}"
            assert (await http.post(place, json={"preferred": "first"}, headers=bearer("admin"))).status_code == 409
            assert (await http.post(place, json={"preferred": "best"}, headers=labeller)).status_code == 422
            assert (await http.post(place, json={"preferred": "first"}, headers=labeller)).status_code == 204
            assert (await http.post(place, json={"preferred": "first"}, headers=labeller)).status_code == 404
            assert (await http.get("/v1/audits/helpful/next", headers=labeller)).json() is None
            assert (await http.get("/v1/audits/clients", headers=bearer("viewer"))).json() == []
            worth = "/v1/audits/helpful/proposals"
            unfitted = await http.get(f"{worth}?count=4", headers=labeller)
            assert (unfitted.status_code, "mor objective fit helpful" in unfitted.json()["detail"]) == (409, True)
            assert (await http.post(worth, json={"count": 4}, headers=bearer("admin"))).status_code == 409
            assert (await http.post(worth, json={"count": 4}, headers=labeller)).status_code == 403
            assert (await http.post(worth, json={"count": 65}, headers=bearer("admin"))).status_code == 422
            for path in ("/v1/runs", "/v1/clients", "/v1/audits/clients", "/v1/alerts"):
                assert (await http.get(path, headers=labeller)).status_code == 403, path
            for path in ("/v1/audits/helpful/next", "/v1/audits/helpful%2F..%2F..%2Fclients/next"):
                refused: httpx.Response = await http.get(path, headers=bearer("viewer"))
                assert refused.status_code in (403, 404, 422)
    async with running(create_app(settings)) as http:
        missing = await http.get("/v1/audits", headers=bearer("labeller"))
        assert (missing.status_code, "set MOR_ROUTER_URL" in missing.json()["detail"]) == (404, True)
