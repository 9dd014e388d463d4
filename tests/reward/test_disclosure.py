"""Disclosure: what a card and answers of a reward service say beside the scores."""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.auth import hash_token, new_token
from mor_core.wire import Calibration, Card, Limits, MembershipAttack, ModelRef, PrivacyAudit
from mor_reward.config import RewardSettings
from mor_reward.disclosure import coarse_card

from tests.reward import reward_kit as kit
from tests.reward.served import RED, TOKEN, service

_OTHER = new_token()
_OTHERS = {"Authorization": f"Bearer {_OTHER}"}


def settings(folder: Path, body: str = "return [float(len(r)) for r in responses]", **more: Any) -> RewardSettings:
    tokens = [("router", TOKEN), ("another router", _OTHER)]
    file, scorer = folder / "tokens.json", folder / "scorer.py"
    file.write_text(json.dumps([{"name": n, "scope": "service", "sha256": hash_token(t)} for n, t in tokens]))
    scorer.write_text(f"import time\n\n\ndef score(messages, responses, images):\n    {body}\n")
    return RewardSettings(function=f"{scorer}:score", tokens_file=file, **more)


async def version(http: httpx.AsyncClient, headers: dict[str, str] | None = None) -> str:
    """Return the version of a card, which the answers have as well."""
    card = (await http.get("/v1/card", headers=headers)).json()
    answer = (await http.post("/v1/score", json=kit.score_body(["a", "bb"], RED), headers=headers)).json()
    assert card["model"] == answer["model"]
    return str(card["model"]["version"])


@pytest.mark.anyio
async def test_two_routers_cannot_tell_by_the_version_that_they_call_the_same_model(tmp_path: Path) -> None:
    async with service(settings(tmp_path)) as http:
        seen = [await version(http), await version(http, _OTHERS)]
    assert len({*seen}) == 2
    async with service(settings(tmp_path)) as http:
        assert await version(http) == seen[0], "a restart, or another replica, changes nothing"
    async with service(settings(tmp_path, "return [1.0 for r in responses]")) as http:
        assert await version(http) != seen[0], "another model has another version"
    async with service(settings(tmp_path, disclosure="full")) as http:
        assert await version(http) == await version(http, _OTHERS)


@pytest.mark.anyio
async def test_a_callers_reason_of_a_failure_is_one_sentence(tmp_path: Path) -> None:
    body = "return [1.0, {}['secret-word']]"
    for disclosure, tells in (("coarse", False), ("full", True)):
        async with service(settings(tmp_path, body, disclosure=disclosure)) as http:
            answer = await http.post("/v1/score", json=kit.score_body(["a", "b"], RED))
        [item] = answer.json()["items"]
        assert item["status"] == "error"
        assert item["detail"].startswith("the model failed on this item")
        assert ("KeyError" in item["detail"]) == tells


@pytest.mark.anyio
async def test_no_deadline_of_a_caller_makes_answers_leave_between_steps_of_time(tmp_path: Path) -> None:
    """A caller that chose its deadline would time the model, and by refusals measure the load to the millisecond."""
    body = "time.sleep(0.02); return [float(len(r)) for r in responses]"
    async with service(settings(tmp_path, body, answer_step_ms=1000)) as http:
        for deadline, status in ((None, 200), ("1275", 200), ("2400", 200), ("1225", 429)):
            headers = {} if deadline is None else {"X-MoR-Deadline-Ms": deadline}
            started = time.monotonic()
            answer = await http.post("/v1/score", json=kit.score_body(["a"], RED), headers=headers)
            assert answer.status_code == status, (deadline, answer.text)
            assert status != 200 or time.monotonic() - started >= 1, deadline


@pytest.mark.anyio
async def test_refusals_leave_at_steps_of_time_too(tmp_path: Path) -> None:
    async with service(settings(tmp_path, "raise ConnectionError", answer_step_ms=400)) as http:
        started = time.monotonic()
        answer = await http.post("/v1/score", json=kit.score_body(["a"], RED))
        assert answer.status_code == 503
        assert time.monotonic() - started >= 0.4


@pytest.mark.anyio
async def test_a_callers_reason_of_a_refusal_tells_neither_load_nor_places(tmp_path: Path) -> None:
    body = "raise ConnectionError('database scans.hospital.internal:5432')"
    for disclosure, tells in (("coarse", False), ("full", True)):
        async with service(settings(tmp_path, body, disclosure=disclosure)) as http:
            away = await http.post("/v1/score", json=kit.score_body(["a"], RED))
            late = await http.post("/v1/score", json=kit.score_body(["a"], RED), headers={"X-MoR-Deadline-Ms": "0"})
        assert (away.status_code, late.status_code) == (503, 429)
        assert ("ConnectionError" in away.json()["detail"]) == tells
        assert "Retry-After" in away.headers and "Retry-After" in late.headers


def test_a_cards_figures_are_rounded_and_its_interval_is_theirs() -> None:
    def card(pairs: int, accuracy: float, wide: float = 0.01) -> Card:
        one = 1 / max(pairs, 10)
        return Card(
            model=ModelRef(name="m", version="abc"),
            domains="charts",
            calibration=Calibration(
                temperature=1.23456,
                ece=0.03456,
                pair_accuracy=accuracy,
                pair_accuracy_interval=(accuracy - wide, accuracy + wide),
                pairs=pairs,
            ),
            privacy=None,
            audit=PrivacyAudit(
                date=datetime.date(2026, 11, 30),
                model_version="abc",
                attacks=(
                    MembershipAttack(
                        attack="LiRA", unit="picture", auc=0.6 + one, auc_interval=(0.5 + one, 0.7),
                        true_positives=one, members=pairs, non_members=1,
                    ),
                ),
                epsilon_lower=0.1 + one,
            ),
            limits=Limits(items=1, responses=1, request_bytes=1, concurrency=1),
        )  # fmt: skip

    one, other = coarse_card(card(1437, 1279 / 1437), "router"), coarse_card(card(1998, 1778 / 1998), "router")
    assert one == other, "the exact share of the pairs would tell their number"
    assert one.calibration is not None
    assert (one.calibration.pairs, one.calibration.pair_accuracy, one.calibration.temperature) == (1000, 0.89, 1.2)
    low, high = one.calibration.pair_accuracy_interval
    assert low < 0.89 < high
    assert high - low > 0.03, "as wide as 1,000 pairs make it"
    assert one.audit is not None
    assert one.audit.model_version == one.model.version, "the audit is still of the model on the card"
    (attack,) = one.audit.attacks
    assert (attack.auc, attack.auc_interval, attack.members) == (0.6, (0.5, 0.7), 1000)
    wide = coarse_card(card(1000, 0.89, wide=0.0932), "router").calibration
    assert wide is not None
    assert wide.pair_accuracy_interval == (0.79, 0.99), "the noise of differential privacy is still in it"
    assert coarse_card(card(0, 0.5), "router").calibration is not None


@pytest.mark.anyio
async def test_a_services_wish_is_on_its_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(settings(tmp_path)) as http:
        assert (await http.get("/v1/card")).json()["asks"] is None
    monkeypatch.setenv("MOR_ASKS_DOMAINS", '["medical"]')
    monkeypatch.setenv("MOR_ASKS_PUBLIC_ONLY", "true")
    async with service(settings(tmp_path)) as http:
        assert (await http.get("/v1/card")).json()["asks"] == {"domains": ["medical"], "public_only": True}
