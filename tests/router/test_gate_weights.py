"""Gate weights of a batch: each group has its own, and a group that has none takes nothing from the others."""

from __future__ import annotations

import base64

import pytest
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message
from mor_router.embedding import GateInput, build_embedder
from mor_router.mathematics.fusion import Weighted
from mor_router.objectives.active_gates import ActiveGates, ColdStart, ObjectivePart
from mor_router.rewarding.gate_weights import GateWeights, NoWeights
from mor_router.rewarding.scoring_plan import ScoringPlan

from tests.router.conftest import Start
from tests.router.endpoints import Endpoints
from tests.router.planted import KINDS, question
from tests.router.test_objectives import objective, specialists

pytestmark = pytest.mark.anyio


async def test_an_objective_whose_clients_are_not_called_has_no_weights_and_raises_nothing() -> None:
    parts = [ObjectivePart(share, 0, ColdStart((name,)), None, {}) for name, share in (("a", 0.6), ("b", 0.4))]
    plan = ScoringPlan(ActiveGates(tuple(parts), None, None), {}, ("a", "b"), (), {}, Weighted(), {})
    asked = GateInput((Message(role="user", content="?"),), {})
    embedder = build_embedder(None, None, 10)
    [both] = await GateWeights(embedder, 2).of_groups([asked], [None], plan, 10)
    assert not isinstance(both, NoWeights)
    assert [dict(part.weights) for part in both] == [{"a": 1.0}, {"b": 1.0}]
    [reason] = await GateWeights(embedder, 1).of_groups([asked], [None], plan, 10)
    assert isinstance(reason, NoWeights)
    assert "no client is available" in reason.problem


@pytest.mark.parametrize("most_clients", [None, 2])
async def test_a_picture_that_cannot_be_decoded_fails_its_own_group_only(
    start: Start, endpoints: Endpoints, most_clients: int | None
) -> None:
    broken = sha256(b"no picture")
    images = {broken: base64.b64encode(b"no picture").decode()}
    groups = []
    for place, kind in enumerate(KINDS):
        messages, shown = question(kind, 800 + place)
        images |= shown
        groups.append({"item_id": kind, "messages": messages, "responses": ["answer 1", "answer 2"]})
    bad = [{"role": "user", "content": [ImagePart.of(broken).model_dump(mode="json")]}]
    groups.insert(1, {"item_id": "bad", "messages": bad, "responses": ["answer 1", "answer 2"]})
    async with start(most_clients=most_clients) as api:
        await specialists(api, endpoints)
        await objective(api)
        await api.ok("POST", "/v1/objectives/helpful/fit")
        found = await api.reward_groups([group | {"objective": "helpful"} for group in groups], images)
        assert [item["item_id"] for item in found] == [group["item_id"] for group in groups]
        for group, item in zip(groups, found, strict=True):
            if group["item_id"] == "bad":
                assert (item["status"], item["rewards"]) == ("error", None)
                assert "not a readable image" in item["detail"]
                continue
            body = {"messages": group["messages"], "images": images, "objective": "helpful"}
            body["images"] = {name: content for name, content in images.items() if name != broken}
            route = await api.ok("POST", "/v1/route", body)
            wanted = {line["client"]: line["weight"] for line in route["clients"] if line["weight"]}
            weights = {line["client"]: line["gate_weight"] for line in item["clients"] if line["gate_weight"]}
            assert weights == pytest.approx(wanted)
            assert len(weights) == (most_clients or len(KINDS))
