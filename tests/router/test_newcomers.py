"""A client that joins later earns its weight, and nothing else changes."""

from __future__ import annotations

import pytest

from tests.router.conftest import Api
from tests.router.endpoints import Endpoints, quality
from tests.router.planted import KINDS, question, specialist
from tests.router.test_objectives import objective

pytestmark = pytest.mark.anyio


async def influence(api: Api, kind: str) -> dict[str, float]:
    messages, images = question(kind, 77)
    body = {"messages": messages, "images": images, "objective": "helpful"}
    return {line["client"]: line["influence"] for line in (await api.ok("POST", "/v1/route", body))["clients"]}


async def test_a_newcomer_earns_weight_in_its_domain_and_the_others_stay_as_they_are(
    api: Api, endpoints: Endpoints
) -> None:
    made = {kind: endpoints.endpoint(kind, specialist(kind)) for kind in KINDS}
    await api.enrol(made["chart"])
    await api.enrol(made["medical"])
    await objective(api)
    first = await api.ok("POST", "/v1/objectives/helpful/fit")
    assert first["extends"] is None
    await api.enrol(made["detail"], state="probation")
    assert (await influence(api, "detail"))["detail"] is None  # in shadow
    made["chart"].score = lambda item, response: quality(response) * 7  # its new scores must not matter
    second = await api.ok("POST", "/v1/objectives/helpful/fit", {"newcomers_only": True})
    assert second["extends"] == first["version"]
    assert set(second["models"]) == set(KINDS)
    before, after = [
        (await api.ok("GET", f"/v1/objectives/helpful/gates/{gate['version']}"))["parameters"]
        for gate in (first, second)
    ]
    assert after["clients"] == [*before["clients"], "detail"]
    assert after["standardisers"][:2] == before["standardisers"]
    assert after["regions"] == before["regions"]
    assert [row[:2] for row in after["coefficients"]] == before["coefficients"]
    assert (await influence(api, "detail"))["detail"] > 0.6
    assert (await influence(api, "chart"))["chart"] > 0.6
    states = {client["name"]: client["state"] for client in await api.ok("GET", "/v1/clients")}
    assert states["detail"] == "active"
    assert (await api.ok("POST", "/v1/objectives/helpful/gates/rollback"))["active"] == first["version"]


async def test_newcomers_need_a_gate_to_join_and_must_be_new(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("chart", specialist("chart")))
    await objective(api)
    early = await api.call("POST", "/v1/objectives/helpful/fit", {"newcomers_only": True})
    assert (early.status_code, "no gate that newcomers could join" in early.text) == (409, True)
    await api.ok("POST", "/v1/objectives/helpful/fit")
    again = await api.call("POST", "/v1/objectives/helpful/fit", {"newcomers_only": True})
    assert (again.status_code, "is in the gate already" in again.text) == (409, True)
