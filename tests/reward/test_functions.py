"""A client's Python function as its reward model: several groups at a time, absences, outages, functions that hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.errors import Invalid
from mor_reward.config import RewardSettings
from mor_reward.function_scorer import FunctionScorer

from tests.reward import reward_kit as kit
from tests.reward.served import BLUE, RED, scores, service

pytestmark = pytest.mark.anyio


def written(folder: Path, source: str) -> str:
    file = folder / "client_scores.py"
    file.write_text(f"import asyncio, threading, time\n\n\n{source}\n")
    return f"{file}:score"


def served_function(tokens_file: Path, source: str, **more: Any) -> RewardSettings:
    return RewardSettings(
        function=written(tokens_file.parent, source), tokens_file=tokens_file, disclosure="full", **more
    )


def groups(count: int, responses: list[str] | None = None) -> dict[str, Any]:
    bodies = [kit.score_body(responses or [f"{number}"], RED, item_id=str(number)) for number in range(count)]
    return {**bodies[0], "items": [item for body in bodies for item in body["items"]]}


MEETING = """\
meeting = threading.Barrier(8)


def score(messages, responses, images):
    meeting.wait(20)
    return [float(response) for response in responses]"""

ASYNC_MEETING = """\
here, all_here = [], None


async def score(messages, responses, images):
    global all_here
    all_here = all_here or asyncio.Event()
    here.append(responses)
    if len(here) == 8:
        all_here.set()
    await asyncio.wait_for(all_here.wait(), 20)
    return [float(response) for response in responses]"""


@pytest.mark.parametrize("source", [MEETING, ASYNC_MEETING], ids=["threads", "async"])
async def test_groups_are_scored_at_the_same_time(tokens_file: Path, source: str) -> None:
    async with service(served_function(tokens_file, source)) as http:
        answer = await http.post("/v1/score", json=groups(8))  # each waits for the seven others
        assert scores(answer) == [[float(number)] for number in range(8)]


async def test_one_call_at_a_time_on_request(tokens_file: Path) -> None:
    source = """\
alone = threading.Lock()


def score(messages, responses, images):
    assert alone.acquire(blocking=False)
    time.sleep(0.01)
    alone.release()
    return [1.0] * len(responses)"""
    async with service(served_function(tokens_file, source, calls_at_once=1)) as http:
        assert scores(await http.post("/v1/score", json=groups(6))) == [[1.0]] * 6


async def test_none_is_a_response_that_cannot_be_judged(tokens_file: Path) -> None:
    source = """\
def score(messages, responses, images):
    return [None if 'x' in response else 1.0 for response in responses]"""
    async with service(served_function(tokens_file, source)) as http:
        answer = (await http.post("/v1/score", json=kit.score_body(["a", "x"], RED))).json()["items"][0]
    assert answer["status"] == "unscorable"
    assert answer["detail"] == "response 1: the model gives it no score"


async def test_a_function_of_two_arguments_needs_no_pictures(tokens_file: Path) -> None:
    source = "def score(messages, responses):\n    return [1.0] * len(responses)"
    async with service(served_function(tokens_file, source)) as http:
        body = kit.score_body(["a"], BLUE)
        answer = await http.post("/v1/score", json={**body, "images": {}})  # no 409 for the missing picture
        assert scores(answer) == [[1.0]]


async def readiness(http: httpx.AsyncClient) -> int:
    return (await http.get("/readyz")).status_code


async def test_an_outage_that_the_function_reports_is_an_outage_of_the_service(tokens_file: Path) -> None:
    source = "def score(messages, responses, images):\n    raise ConnectionRefusedError(111, 'refused')"
    async with service(served_function(tokens_file, source)) as http:
        answer = await http.post("/v1/score", json=groups(4))
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1


async def test_an_outage_in_a_librarys_exception_is_one_and_its_address_is_not_told(tokens_file: Path) -> None:
    source = """\
class RequestException(OSError):  # as those of requests and urllib
    pass


def score(messages, responses, images):
    try:
        raise ConnectionRefusedError(111, "refused")
    except ConnectionRefusedError:
        raise RequestException("GET http://judge/rate?text=private is refused")"""
    async with service(served_function(tokens_file, source)) as http:
        answer = await http.post("/v1/score", json=groups(4))
    assert answer.status_code == 503
    assert "reports an outage: ConnectionRefusedError" in answer.text and "private" not in answer.text


@pytest.mark.parametrize(
    ("source", "status", "detail"),
    [
        (
            "class Judge:\n    async def __call__(self, messages, responses):\n        return [1.0]\nscore = Judge()",
            "ok",
            "",
        ),
        ("async def ask():\n    return [1.0]\ndef score(m, r):\n    return ask()", "error", "write it as 'async def'"),
        ("async def score(messages, responses):\n    raise SystemExit(3)", "error", "the function raised SystemExit"),
        ("def score(messages, responses):\n    raise asyncio.CancelledError", "error", "raised CancelledError"),
    ],
    ids=["asynchronous object", "coroutine", "exit", "cancelled"],
)
async def test_the_service_outlives_any_kind_of_function(
    tokens_file: Path, source: str, status: str, detail: str
) -> None:
    async with service(served_function(tokens_file, source)) as http:
        for _ in range(2):
            [item] = (await http.post("/v1/score", json=groups(1))).json()["items"]
            assert item["status"] == status and detail in (item["detail"] or "")


async def test_an_outage_for_some_groups_is_an_error_of_these(tokens_file: Path) -> None:
    source = """\
def score(messages, responses, images):
    if responses == ["1"]:
        raise TimeoutError
    return [1.0]"""
    async with service(served_function(tokens_file, source)) as http:
        answer = await http.post("/v1/score", json=groups(3))
    assert [item["status"] for item in answer.json()["items"]] == ["ok", "error", "ok"]


@pytest.mark.parametrize("kind", ["", "async "])
async def test_a_function_that_hangs_costs_one_time_limit_for_all_groups(tokens_file: Path, kind: str) -> None:
    wait = "await asyncio.sleep(60)" if kind else "time.sleep(60)"
    source = f"{kind}def score(messages, responses, images):\n    {wait}"
    async with service(served_function(tokens_file, source, call_timeout_s=0.5)) as http:
        assert await readiness(http) == 200
        answer = await http.post("/v1/score", json=groups(8))
        assert answer.status_code == 503
        assert await readiness(http) == (200 if kind else 503)  # threads cannot be ended


def test_a_function_of_other_arguments_is_refused_at_the_start(tmp_path: Path) -> None:
    reference = written(tmp_path, "def score(responses):\n    return responses")
    with pytest.raises(Invalid, match=r"it takes \(responses\); write it as f\(messages, responses, images\)"):
        FunctionScorer(reference, at_once=1, timeout_s=1)
