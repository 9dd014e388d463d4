"""Conflicting objectives: weights follow the requested objective in any wording, and blends are sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mor_core.run_announcements import announce, withdraw
from mor_core.runs import RunSpec
from mor_core.streams import Streams
from mor_core.wire import RewardRecord
from pydantic import ValidationError
from redis.asyncio import Redis
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from tests.router.conftest import TOKENS, Api, Start, eventually
from tests.router.endpoints import Endpoints
from tests.router.planted import jsonl
from tests.router.test_reward_stage import all_of, count, rollout

pytestmark = pytest.mark.anyio

TEXTS = {"complete": "Answer complete and full", "brief": "Answer brief and short"}
PARAPHRASES = {
    "complete": ["reply thorough, with every detail", "leave nothing out; exhaustive response"],
    "brief": ["reply terse, in few words", "concise response; keep it compact"],
}
_SYNONYMS = (
    "complete full thorough exhaustive detail every nothing out leave",
    "brief short terse concise compact few words keep",
    "answer reply response",
)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a sentence encoder that knows synonyms: one embedding for each meaning, averaged over the words."""
    folder = tmp_path_factory.mktemp("text")
    words = {word: meaning for meaning, group in enumerate(_SYNONYMS) for word in group.split()}
    vocabulary = {"[UNK]": 0, **{word: place for place, word in enumerate(words, 1)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=0, num_attention_heads=2, intermediate_size=32
        )
    )
    with torch.no_grad():
        model.embeddings.position_embeddings.weight.zero_()
        model.embeddings.token_type_embeddings.weight.zero_()
        ticks = torch.arange(32)
        meanings = torch.stack([1.0 - 2 * (ticks // 2**bit % 2) for bit in range(4)])  # orthogonal, of mean 0
        for word, meaning in words.items():
            model.embeddings.word_embeddings.weight[vocabulary[word]] = meanings[meaning]
        model.embeddings.word_embeddings.weight[0] = meanings[-1]
    model.save_pretrained(folder)
    return folder


def long(item: dict[str, Any], response: str) -> float:
    return float(len(response.split()))


def short(item: dict[str, Any], response: str) -> float:
    return -2.0 * len(response.split()) + 0.1


def anchors(objective: str) -> bytes:
    """Make anchors with the same questions and answers for both objectives, and opposite preferences."""
    random = np.random.default_rng(7)
    made = []
    for index in range(48):
        few, many = sorted(random.choice(np.arange(1, 12), size=2, replace=False).tolist())
        pair = {"brief": few, "complete": many}
        other = many if pair[objective] == few else few
        prompt = f"Question {index % 6}: what is in picture {index}?"
        made.append({"prompt": prompt, "chosen": "word " * pair[objective], "rejected": "word " * other})
    return jsonl(made)


async def conflicting(api: Api, endpoints: Endpoints) -> None:
    await api.enrol(endpoints.endpoint("long", long))
    await api.enrol(endpoints.endpoint("short", short))
    for name, text in TEXTS.items():
        await api.ok("POST", "/v1/objectives", {"name": name, "text": text})
        headers = {"Authorization": f"Bearer {TOKENS['admin']}", "Content-Type": "application/x-ndjson"}
        path = f"/v1/objectives/{name}/anchors"
        assert (await api.http.put(path, content=anchors(name), headers=headers)).status_code == 200
        await api.ok("POST", f"/v1/objectives/{name}/fit")


async def influence(api: Api, objective: Any) -> dict[str, float]:
    body = {"messages": [{"role": "user", "content": "Question 2: what is in picture 99?"}], "objective": objective}
    return {line["client"]: line["influence"] for line in (await api.ok("POST", "/v1/route", body))["clients"]}


async def rewarded(api: Api, objective: Any, **body: Any) -> dict[str, Any]:
    item = {
        "item_id": "g",
        "messages": [{"role": "user", "content": "Question 3: what is in picture 7?"}],
        "responses": ["one", "one two three", "one two three four five six", "one two"],
        "objective": objective,
    }
    found = (await api.ok("POST", "/v1/reward", {"items": [item], **body}))["items"][0]
    assert isinstance(found, dict)
    return found


async def test_weights_follow_the_objective_in_any_wording(
    start: Start, endpoints: Endpoints, text_model: Path
) -> None:
    async with start(embed_text_model=str(text_model)) as api:
        await conflicting(api, endpoints)
        for client, objective in (("long", "complete"), ("short", "brief")):
            for wording in (objective, TEXTS[objective], *PARAPHRASES[objective]):
                shares = await influence(api, wording)
                assert shares[client] > 0.8, (wording, shares)
            found = await rewarded(api, PARAPHRASES[objective][0])
            best = np.argmax(found["rewards"])
            assert best == {"long": 2, "short": 0}[client]
            assert found["objectives"][0]["name"] == objective
            assert found["objectives"][0]["share"] > 0.8
            assert "by its text" in found["note"]
        both = await rewarded(api, "thorough yet concise")
        shares = {line["name"]: line["share"] for line in both["objectives"]}
        assert shares == pytest.approx({"complete": 0.5, "brief": 0.5}, abs=0.2)
        far = await rewarded(api, "of the many")
        assert (far["gate_version"], far["objectives"]) == (0, [])
        assert far["note"].startswith("cold start")


async def test_an_added_paraphrase_is_recognised(api: Api, endpoints: Endpoints) -> None:
    await conflicting(api, endpoints)
    wording = "Spare no particular whatsoever"
    assert "cold start" in (await rewarded(api, wording))["note"]
    await api.ok("PATCH", "/v1/objectives/complete", {"paraphrases": [wording, "Tell all"]})
    found = await rewarded(api, f"{wording}, please")
    assert found["objectives"][0]["name"] == "complete"
    assert (await influence(api, wording))["long"] > 0.8


@pytest.mark.parametrize("kind", ["weighted", "median", "worst", "uniform", "gdpo", "mean_minus_variance"])
async def test_a_blend_lies_between_its_objectives(api: Api, endpoints: Endpoints, kind: str) -> None:
    await conflicting(api, endpoints)
    alone = {name: np.array((await rewarded(api, name))["rewards"]) for name in TEXTS}
    for share in (0.25, 0.5, 0.9):
        found = await rewarded(api, {"complete": share, "brief": 1 - share}, fusion={"kind": kind})
        lines = found["objectives"]
        assert {line["name"]: line["share"] for line in lines} == pytest.approx({"complete": share, "brief": 1 - share})
        assert lines == sorted(lines, key=lambda line: -line["share"])
        assert found["gate_version"] == lines[0]["gate_version"] > 0
        assert sum(line["weight"] for line in found["clients"]) == pytest.approx(1)
        if kind == "weighted":
            wanted = share * alone["complete"] + (1 - share) * alone["brief"]
            np.testing.assert_allclose(found["rewards"], wanted, atol=1e-9)
    whole = await rewarded(api, {"brief": 1.0}, fusion={"kind": kind})
    np.testing.assert_allclose(
        whole["rewards"], (await rewarded(api, "brief", fusion={"kind": kind}))["rewards"], atol=1e-9
    )
    first, second = [await influence(api, {"complete": share, "brief": 1 - share}) for share in (0.25, 0.75)]
    assert first["long"] < second["long"]


async def test_a_blend_passes_through_the_streams_unchanged(
    start: Start, endpoints: Endpoints, redis: Redis, run_name: str
) -> None:
    blend = {"complete": 0.25, "brief": 0.75}
    async with start(worker=True, quorum_attempts=1) as api:
        await conflicting(api, endpoints)
        await announce(redis, run_name, "model")
        side = Streams(redis, run_name, 256)
        for name, objective in (("g", blend), ("unknown", {"complete": 0.5, "polite": 0.5})):
            sent = rollout(run_name, name, ("one two", "one two three", "one"))
            prompt = sent.prompt.model_copy(update={"objective": objective})
            await side.publish("rollouts", sent.model_copy(update={"prompt": prompt}), timeout_s=5)
        await count(redis, run_name, rollouts=0, rewards=1, dead=1)
        [record] = await all_of(redis, run_name, "rewards")
        assert isinstance(record, RewardRecord)
        assert record.rollout.prompt.objective == blend
        assert [(line.name, line.share) for line in record.objectives] == [("brief", 0.75), ("complete", 0.25)]
        assert record.gate_version == record.objectives[0].gate_version
        [letter] = await all_of(redis, run_name, "dead")
        assert "no objective 'polite', which the blend names" in letter.reason
        await withdraw(redis, run_name)


async def test_clients_get_the_whole_blend_as_text(api: Api, endpoints: Endpoints) -> None:
    await conflicting(api, endpoints)
    observer = endpoints.endpoint("observer")
    await api.enrol(observer)
    await rewarded(api, {"complete": 0.25, "brief": 0.75})

    async def called() -> bool:
        return bool(observer.calls)

    await eventually(called)  # the reward does not wait for a client without weight
    assert observer.calls[-1]["items"][0]["objective"] == f"75%: {TEXTS['brief']}\n25%: {TEXTS['complete']}"


@pytest.mark.parametrize(
    ("blend", "expected"),
    [
        ({"complete": 0.5, "brief": 0.6}, "sum to 1.1, not 1"),
        ({"complete": 1.5, "brief": -0.5}, "objective"),
        ({}, "objective"),
    ],
)
async def test_an_invalid_blend_is_refused(api: Api, blend: dict[str, float], expected: str) -> None:
    body = {"messages": [{"role": "user", "content": "?"}], "objective": blend}
    refused = await api.call("POST", "/v1/route", body)
    assert refused.status_code == 422
    assert expected in refused.text
    with pytest.raises(ValidationError, match="objective"):
        RunSpec(name="r", model="m", prompts="p", objective=blend)
