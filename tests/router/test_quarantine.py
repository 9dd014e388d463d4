"""Quarantine: clients useless everywhere are excluded within a few fits, specialists never; they can return."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from mor_core.clients import State
from mor_router.clients.registry import ClientRecord
from mor_router.config import RouterSettings
from mor_router.mathematics.sign_flip_test import LEAST_ANCHORS, USELESS, p_value, region_cells
from mor_router.trust.quarantine import QuarantineEvidence, QuarantineFinding, judge
from numpy import ndarray

from tests.router.conftest import Api
from tests.router.endpoints import Endpoints, noise, quality, words
from tests.router.planted import jsonl, rows
from tests.router.test_objectives import specialists, upload

pytestmark = pytest.mark.anyio

_TRIALS = 16


@pytest.fixture
def settings(settings: RouterSettings) -> RouterSettings:
    """Give clients so much time that a busy machine makes none of them late, which a fit would leave out."""
    return settings.model_copy(update={"deadline_s": 600.0})


def anchors(random: np.random.Generator, count: int) -> tuple[ndarray, ndarray, ndarray]:
    """Return inputs in three touching clusters, their cluster, and the true difference of each pair."""
    domain = random.integers(0, 3, size=count)
    inputs = 0.12 * random.normal(size=(count, 24))
    inputs[np.arange(count), domain] += 1
    return inputs, domain, np.abs(1.4 * random.normal(size=count))


def test_specialists_pass_the_test_and_useless_clients_fail() -> None:
    failed: dict[str, int] = {}
    for trial in range(_TRIALS):
        random = np.random.default_rng(trial)
        inputs, domain, truth = anchors(random, LEAST_ANCHORS)
        error = 2.1 * random.normal(size=LEAST_ANCHORS)  # ranks 69 % of the pairs that it knows
        by_kind = {
            "misleading specialist": np.where(domain == 0, truth, -0.7 * truth) + error,
            "specialist": np.where(domain == 0, truth, 0.0) + error,
            "random": error,
            "flipping": (truth + 0.5 * error) * random.choice((-1, 1), size=LEAST_ANCHORS),
            "reversed": -(truth + 0.5 * error),
        }
        found = region_cells(inputs)
        for kind, differences in by_kind.items():
            failed[kind] = failed.get(kind, 0) + (p_value(found, differences) > USELESS)
    assert failed["misleading specialist"] == failed["specialist"] == 0
    assert min(failed["random"], failed["flipping"]) >= 0.75 * _TRIALS
    assert failed["reversed"] == _TRIALS


def test_a_client_with_equal_scores_is_useless() -> None:
    inputs, _, _ = anchors(np.random.default_rng(0), 64)
    assert p_value(region_cells(inputs), np.zeros(64)) == 1


def record(state: State) -> ClientRecord:
    return ClientRecord(
        name="c",
        url="http://c",
        domains="",
        source="loopback",
        state=state,
        enrolled_at=0,
        secret="s",
        inbound_sha256="0" * 64,
        revision="r",
    )


def evidence(count: int, p: float) -> QuarantineEvidence:
    return QuarantineEvidence(differences={f"{n:064x}": 0.0 for n in range(count)}, p=p)


@pytest.mark.parametrize(
    ("state", "found", "useful"),
    [
        ("active", {}, None),
        ("active", {"a": evidence(639, 0.9)}, None),
        ("active", {"a": evidence(640, 0.9)}, False),
        ("active", {"a": evidence(640, 0.9), "b": evidence(64, 0.04)}, None),  # of use for another objective
        ("active", {"a": evidence(640, 0.9), "b": evidence(64, 0.06)}, False),  # two tests: chance explains it
        ("quarantined", {"a": evidence(64, 0.02)}, None),
        ("quarantined", {"a": evidence(64, 0.01)}, True),
    ],
)
def test_evidence_decides_the_state(state: State, found: dict[str, QuarantineEvidence], useful: bool | None) -> None:
    finding = judge(record(state), found)
    assert (finding.useful if isinstance(finding, QuarantineFinding) else None) == useful


def guess(item: dict[str, Any], response: str) -> float:
    return noise("guess", words(item), response)


def inverted(item: dict[str, Any], response: str) -> float:
    return -quality(response)


async def refit(api: Api, seed: int) -> dict[str, Any]:
    assert (await upload(api, jsonl(rows(128, images=False, seed=seed)))).status_code == 200
    gate = await api.ok("POST", "/v1/objectives/helpful/fit")
    assert isinstance(gate, dict)
    return gate


async def states(api: Api) -> dict[str, str]:
    return {client["name"]: client["state"] for client in await api.ok("GET", "/v1/clients")}


async def test_useless_clients_are_excluded_within_five_refits_and_return_when_they_pass(
    api: Api, endpoints: Endpoints
) -> None:
    made = await specialists(api, endpoints)
    for name, score in (("guess", guess), ("constant", lambda item, response: 3.0), ("inverted", inverted)):
        made[name] = endpoints.endpoint(name, score)
        await api.enrol(made[name], state="probation")
    await api.ok("POST", "/v1/objectives", {"name": "helpful", "text": "Answer what was asked."})
    bad = {"guess", "constant", "inverted"}
    for seed in range(20, 26):
        gate = await refit(api, seed)
        assert seed >= 24 or set((await states(api)).values()) == {"active"}
        assert seed < 22 or {line["client"] for line in gate["report"]["clients"]} == set(made) - bad
    wanted = {name: "quarantined" if name in bad else "active" for name in made}
    assert await states(api) == wanted
    found = await api.reward("answer 1", "answer 2", objective="helpful")
    lines = {line["client"]: line for line in found["clients"]}
    assert all((lines[name]["status"], lines[name]["weight"]) == ("not_asked", 0) for name in bad)
    assert "in no region of inputs do its scores rank the better responses higher" in lines["guess"]["detail"]
    audit = [json.loads(line) for line in api.router.resources.settings.audit_log.read_text().splitlines()]  # type: ignore[union-attr]
    moved = [line for line in audit if line["action"] == "quarantine"]
    assert {(line["subject"], line["state"]) for line in moved} == {(name, "quarantined") for name in bad}
    metrics = (await api.call("GET", "/metrics")).text
    assert 'mor_router_quarantined{client="guess"} 1.0' in metrics
    assert 'mor_router_quarantined{client="chart"} 0.0' in metrics

    made["inverted"].score, made["inverted"].version = (lambda item, response: quality(response)), "2"
    await refit(api, 26)
    assert (await states(api))["inverted"] == "probation"
    assert (await states(api))["guess"] == "quarantined"
    gate = await refit(api, 27)
    assert (await states(api))["inverted"] == "active"
    report = next(line for line in gate["report"]["clients"] if line["client"] == "inverted")
    assert report["accuracy"]["value"] == 1
    await api.ok("PATCH", "/v1/clients/constant", {"state": "probation"})
    assert (await states(api))["constant"] == "probation"
