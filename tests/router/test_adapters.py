"""Trainers that send responses one by one get the rewards of groups, or an error, and never a 0 for a missing one."""

from __future__ import annotations

import asyncio
import base64
import io
from typing import Any

import httpx
import pytest
from mor_core.images import sha256
from mor_core.tasks import stop
from mor_router.rewarding.openrlhf_shapes import OpenRLHFForm
from PIL import Image

from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import Endpoint, Endpoints, html

pytestmark = pytest.mark.anyio

PROMPT = "What is it?"


async def openrlhf(api: Api, *responses: str, prompt: str = PROMPT, query: str = "") -> httpx.Response:
    body = {"query": [prompt + response for response in responses], "prompts": [prompt] * len(responses), "labels": []}
    return await api.call("POST", f"/v1/adapters/openrlhf?{query}", body, token=TOKENS["scorer"])


async def grouped(api: Api, groups: dict[str, list[str]]) -> dict[str, list[float]]:
    """Return the rewards of prompts' responses as the groups of one request to ``/v1/reward``."""
    items = [
        {"item_id": prompt, "messages": [{"role": "user", "content": prompt}], "responses": responses}
        for prompt, responses in groups.items()
    ]
    found = (await api.ok("POST", "/v1/reward", {"items": items}))["items"]
    return {item["item_id"]: item["rewards"] for item in found}


@pytest.fixture
async def clinic(api: Api, endpoints: Endpoints) -> Endpoint:
    endpoint = endpoints.endpoint("clinic")
    await api.enrol(endpoint)
    return endpoint


@pytest.mark.parametrize("query", ["group_size=4", "wait_s=0.5"])
async def test_calls_with_one_response_each_are_rewarded_as_groups(api: Api, clinic: Endpoint, query: str) -> None:
    answers = await asyncio.gather(*(openrlhf(api, f"answer {place}", query=query) for place in (2, 9, 4, 1)))
    rewards = [answer.json()["rewards"][0] for answer in answers]
    assert rewards[3] < rewards[0] < rewards[2] < rewards[1]
    assert answers[0].json()["scores"] == rewards[:1]
    assert [len(item["responses"]) for call in clinic.calls for item in call["items"]] == [4], "one group"


async def test_one_call_with_the_responses_to_several_prompts(api: Api, clinic: Endpoint) -> None:
    body = {"query": ["One? a 1", "Two? a 5", "One? a 3", "Two? a 2"], "prompts": ["One?", "Two?", "One?", "Two?"]}
    answer = await api.ok("POST", "/v1/adapters/openrlhf?group_size=2", body)
    wanted = await grouped(api, {"One?": ["a 1", "a 3"], "Two?": ["a 5", "a 2"]})
    one, two = wanted["One?"], wanted["Two?"]
    assert [len(call["items"]) for call in clinic.calls] == [2, 2], "both groups in one request"
    assert answer["rewards"] == pytest.approx([one[0], two[0], one[1], two[1]])


async def test_a_lone_response_is_refused_unless_it_is_asked_for(api: Api, clinic: Endpoint) -> None:
    lone = await openrlhf(api, "answer 3", query="wait_s=0.1")
    assert lone.status_code == 422 and "group_size=1" in lone.json()["detail"]
    assert not clinic.calls
    level = await openrlhf(api, "answer 3", query="group_size=1")
    assert level.status_code == 200 and len(level.json()["rewards"]) == 1


async def test_a_group_that_is_not_complete_in_time_is_unavailable(api: Api, clinic: Endpoint) -> None:
    few = await asyncio.gather(*(openrlhf(api, f"answer {n}", query="group_size=4&wait_s=0.2") for n in range(3)))
    assert [answer.status_code for answer in few] == [503] * 3
    assert "3 of 4" in few[0].json()["detail"] and int(few[0].headers["Retry-After"]) > 0
    assert not clinic.calls


async def test_a_failure_is_503_and_names_no_client(api: Api, clinic: Endpoint) -> None:
    clinic.broken = html
    failed = await openrlhf(api, "answer 1", "answer 3", query="group_size=2")
    assert failed.status_code == 503 and "Retry-After" in failed.headers
    assert "clinic" not in failed.text and "rewards" not in failed.json()
    clinic.broken = None
    assert (await openrlhf(api, "answer 1", "answer 3", query="group_size=2")).status_code == 200


async def test_the_response_of_a_caller_that_hangs_up_leaves_its_group(api: Api, clinic: Endpoint) -> None:
    gone = asyncio.create_task(openrlhf(api, "answer 8", query="group_size=2"))
    coalescer = api.router.rewarding.coalescer

    async def waits() -> bool:
        return bool(coalescer._open)

    await eventually(waits)
    await stop([gone])
    first, second = await asyncio.gather(
        openrlhf(api, "answer 1", query="group_size=2"), openrlhf(api, "answer 3", query="group_size=2")
    )
    assert first.json()["rewards"][0] < second.json()["rewards"][0]
    (sent,) = [item["responses"] for call in clinic.calls for item in call["items"]]
    assert sorted(sent) == ["answer 1", "answer 3"]


async def test_groups_of_one_caller_have_no_responses_of_another(api: Api, clinic: Endpoint) -> None:
    body = {"query": [PROMPT + "a 1"], "prompts": [PROMPT]}
    path = "/v1/adapters/openrlhf?group_size=2&wait_s=0.2"
    found = await asyncio.gather(*(api.call("POST", path, body, token=TOKENS[scope]) for scope in ("scorer", "admin")))
    assert [answer.status_code for answer in found] == [503, 503]


async def test_more_responses_than_may_wait_are_refused(start: Start, endpoints: Endpoints) -> None:
    async with start(coalesced_responses=3) as api:
        await api.enrol(endpoints.endpoint("clinic"))
        many = [openrlhf(api, f"answer {n}", query="group_size=4&wait_s=1") for n in range(4)]
        assert sorted(answer.status_code for answer in await asyncio.gather(*many)) == [429, 503, 503, 503]
        assert (await openrlhf(api, "a 1", "a 2", query="group_size=2")).status_code == 200, "their places are free"


async def test_waits_end_with_the_router(start: Start, endpoints: Endpoints) -> None:
    async with start() as api:
        await api.enrol(endpoints.endpoint("clinic"))
        waiting = asyncio.create_task(openrlhf(api, "answer 8", query="group_size=2"))

        async def waits() -> bool:
            return bool(api.router.rewarding.coalescer._open)

        await eventually(waits)
        await api.router.rewarding.coalescer.__aexit__()
        assert (await waiting).status_code == 503


async def test_the_chat_template_is_cut_off(api: Api, clinic: Endpoint) -> None:
    prompt = "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    strip = {"strip": ["<|im_start|>user", "<|im_start|>assistant", "<|im_end|>"]}
    body = {"query": [prompt + "a 1<|im_end|>", prompt + "a 2<|im_end|>\n"], "prompts": [prompt, prompt]}
    path = f"/v1/adapters/openrlhf?group_size=2&{httpx.QueryParams(strip)}"
    assert len((await api.ok("POST", path, body))["rewards"]) == 2
    (sent,) = clinic.calls[-1]["items"]
    assert sent["messages"][0]["content"] == "What is it?" and sent["responses"] == ["a 1", "a 2"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"query": ["What? a"], "prompts": ["Which?"]}, "does not begin with"),
        ({"query": ["What? a"], "prompts": ["", ""]}, "one prompt per query"),
        ({"query": ["What? a"]}, "prompts"),
        ({"query": [], "prompts": []}, "query"),
    ],
)
async def test_a_request_that_is_not_openrlhfs_is_refused(api: Api, body: dict[str, Any], reason: str) -> None:
    refused = await api.call("POST", "/v1/adapters/openrlhf", body)
    assert refused.status_code == 422 and reason in refused.json()["detail"]


def test_a_text_of_nothing_but_template_is_cut_in_one_pass() -> None:
    """A pass for each part would take hours here."""
    form = OpenRLHFForm(strip=("<|im_start|>user", "<|im_start|>", "<|im_end|>", "a"))
    assert form.stripped("\n<|im_end|> " * 300_000) == ""
    assert form.stripped("<|im_start|>user\n a <|im_end|> b a\n<|im_end|>\n") == "b"


async def test_a_token_may_be_the_password_of_the_address(api: Api, clinic: Endpoint) -> None:
    """OpenRLHF's only setting is an address; its HTTP library sends what stands before the @ by the Basic scheme."""
    body = {"query": [PROMPT + "a 1", PROMPT + "a 2"], "prompts": [PROMPT] * 2}
    path = "/v1/adapters/openrlhf?group_size=2"
    for password, status in ((TOKENS["scorer"], 200), (TOKENS["admin"], 401), ("unknown", 401), ("", 401)):
        answer = await api.http.post(path, json=body, auth=httpx.BasicAuth("token", password))
        assert answer.status_code == status, answer.text
    assert (await api.http.post(path, json=body, headers={"Authorization": "Basic ???"})).status_code == 401


def verify_body(response: str, content: bytes, **more: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    shown = [{"type": "input_image", "image_url": url, "detail": "auto"}, {"type": "input_text", "text": "Which?"}]
    said = [{"type": "output_text", "text": response, "annotations": []}]
    output = [
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "message", "role": "assistant", "content": said},
    ]
    turns = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": shown}]
    return {
        "responses_create_params": {"input": turns, "temperature": 0.5},
        "response": {"id": "resp_0", "output": output},
        **more,
    }


async def test_verify_takes_pictures_and_repeats_the_request(api: Api, clinic: Endpoint) -> None:
    content = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(content, "PNG")
    bodies = [verify_body(response, content.getvalue(), task=place) for place, response in enumerate(["a 1", "a 3"])]
    path = "/v1/adapters/verify?group_size=2"
    found = await asyncio.gather(*(api.ok("POST", path, body, token=TOKENS["scorer"]) for body in bodies))
    assert [{**body, "reward": answer["reward"]} for body, answer in zip(bodies, found, strict=True)] == found
    assert found[0]["reward"] < found[1]["reward"]
    assert clinic.images[sha256(content.getvalue())] == content.getvalue()
    (sent,) = clinic.calls[-1]["items"]
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]


async def test_verify_shows_the_instructions_and_groups_by_them(api: Api, clinic: Endpoint) -> None:
    path = "/v1/adapters/verify?group_size=2"
    bodies = [
        {
            "responses_create_params": {"input": "Which?", "instructions": instructions},
            "response": {"output": [{"type": "message", "content": [{"type": "output_text", "text": f"a {place}"}]}]},
        }
        for instructions in ("Be brief.", "Be long.")
        for place in (1, 3)
    ]
    found = await asyncio.gather(*(api.ok("POST", path, body, token=TOKENS["scorer"]) for body in bodies))
    assert [{**body, "reward": answer["reward"]} for body, answer in zip(bodies, found, strict=True)] == found
    sent = [item["messages"] for call in clinic.calls for item in call["items"]]
    assert sorted(turns[0]["content"] for turns in sent) == ["Be brief.", "Be long."]
    assert {turn["role"] for turns in sent for turn in turns} == {"system", "user"}


async def test_verify_refuses_addresses_and_empty_outputs(api: Api) -> None:
    elsewhere = verify_body("a 1", b"")
    elsewhere["responses_create_params"]["input"][1]["content"][0]["image_url"] = "https://host/picture.png"
    silent = verify_body("a 1", b"x")
    silent["response"]["output"].pop()
    for body, reason in ((elsewhere, "not fetched"), (silent, "no item of type 'message'")):
        refused = await api.call("POST", "/v1/adapters/verify?group_size=1", body)
        assert refused.status_code == 422 and reason in refused.json()["detail"]
