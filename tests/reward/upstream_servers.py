"""Reward models behind other protocols, in the shapes that their servers answer with, on one app."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections import Counter
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response

KEY = "the-key-of-the-upstream"


def logit(text: str) -> float:
    """Return the raw score of a text: the last number in it."""
    found = re.findall(r"-?\d+(?:\.\d+)?", text)
    return float(found[-1]) if found else 0.0


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


class Upstreams:
    """App that speaks every protocol, with what a test may observe and break."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.authorization: set[str | None] = set()
        self.status = 200
        self.delay_s = 0.0
        self.compressed: bytes | None = None
        """Compressed content that is answered to each call."""
        self.at_once = 0
        self.most_at_once = 0
        self.model = "one"
        self.others = 0
        """Models beside it."""
        self.root = "weights-1"
        """Checkpoint that the model is served from."""
        self.prefers_first = 0.0
        """Number that the judge adds to the first answer: preference of a position."""
        self.rating = "<think>Perhaps 3?</think> Rating: {:g}"
        self.finish = "stop"
        """Reason for which the judge's reply ends."""
        self.choices = ("A", "Answer B.")
        """Judge's replies: to a rating, and where the first or the second answer is better."""
        self.answers: Counter[str] = Counter()
        self.app.middleware("http")(self._watch)
        for path, answer in {
            "/get_reward": self._get_reward,
            "/classify": self._classify,
            "/sglang/classify": self._sglang,
            "/score": self._score,
            "/rerank": self._rerank,
            "/tei/rerank": self._tei_rerank,
            "/predict": self._predict,
            "/v2/models/rm/infer": self._infer,
            "/v2/models/hf/infer": self._infer_labels,
            "/v1/chat/completions": self._chat,
            "/verify": self._verify,
        }.items():
            self.app.post(path)(answer)
        self.app.get("/v1/models")(lambda: {"data": self._models()})
        self.app.get("/health")(lambda: {})

    def _models(self) -> list[dict[str, Any]]:
        others = [{"id": f"other-{number}"} for number in range(self.others)]
        return [*others, {"id": self.model, "root": self.root, "created": 1 + len(self.bodies)}]

    async def _watch(self, request: Request, go_on: Any) -> Any:
        self.authorization.add(request.headers.get("authorization"))
        self.answers[request.url.path] += 1
        if request.method == "POST":
            self.bodies.append((request.url.path, json.loads(await request.body())))
        if self.status != 200:
            return JSONResponse({"detail": "a secret of the upstream"}, self.status)
        if self.compressed is not None:
            headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
            return Response(self.compressed, headers=headers)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(self.delay_s)
            return await go_on(request)
        finally:
            self.at_once -= 1

    async def _get_reward(self, body: dict[str, Any]) -> Any:
        assert len(body["query"]) == len(body["prompts"])
        return {"rewards": [logit(text) for text in body["query"]]}

    async def _classify(self, body: dict[str, Any]) -> Any:
        texts = [body["messages"][-1]["content"]] if "messages" in body else body["input"]
        raw = body.get("use_activation") is False
        rows = [
            {"index": place, "label": "LABEL_0", "probs": [logit(text) if raw else sigmoid(logit(text))]}
            for place, text in enumerate(texts)
        ]
        return {"id": "1", "object": "list", "model": "rm", "data": [row | {"num_classes": 1} for row in rows[::-1]]}

    async def _sglang(self, body: dict[str, Any]) -> Any:
        return [{"embedding": [logit(text)], "meta_info": {"id": "1"}} for text in body["text"]]

    async def _score(self, body: dict[str, Any]) -> Any:
        assert body["use_activation"] is False and isinstance(body["text_1"], str)
        return {"data": [{"index": place, "score": logit(text)} for place, text in enumerate(body["text_2"])]}

    async def _rerank(self, body: dict[str, Any]) -> Any:
        rows = [
            {"index": place, "document": {"text": text}, "relevance_score": logit(text)}
            for place, text in enumerate(body["documents"])
        ]
        return {"results": sorted(rows, key=lambda row: -row["relevance_score"])}

    async def _tei_rerank(self, body: dict[str, Any]) -> Any:
        rows = [
            {"index": place, "score": logit(text) if body["raw_scores"] else sigmoid(logit(text))}
            for place, text in enumerate(body["texts"])
        ]
        return sorted(rows, key=lambda row: -row["score"])

    async def _predict(self, body: dict[str, Any]) -> Any:
        assert body["raw_scores"]
        rows = [[{"score": logit(text), "label": "good"}, {"score": 9.0, "label": "bad"}] for (text,) in body["inputs"]]
        return [sorted(row, key=lambda one: -one["score"]) for row in rows]

    async def _infer(self, body: dict[str, Any]) -> Any:
        (tensor,) = body["inputs"]
        assert tensor["datatype"] == "BYTES" and tensor["shape"] == [len(tensor["data"])]
        data = [value for text in tensor["data"] for value in (9.0, logit(text))]
        shape = [len(tensor["data"]), 2]
        return {"model_name": "rm", "outputs": [{"name": "logits", "datatype": "FP32", "shape": shape, "data": data}]}

    async def _infer_labels(self, body: dict[str, Any]) -> Any:
        (tensor,) = body["inputs"]
        found = [(logit(text) >= 0, sigmoid(abs(logit(text)))) for text in tensor["data"]]
        data = [json.dumps({"label": "good" if good else "bad", "score": score}) for good, score in found]
        output = {"name": "output", "datatype": "BYTES", "shape": [len(data), 1], "data": data}
        return {"model_name": "hf", "outputs": [output]}

    async def _chat(self, body: dict[str, Any]) -> Any:
        assert body["temperature"] == 0
        task = body["messages"][-1]["content"]
        if "Answer A:" in task:
            first, second = task.split("Answer A:")[1].split("Which answer")[0].split("Answer B:")
            reply = self.choices[logit(first) + self.prefers_first <= logit(second)]
        else:
            reply = self.rating.format(logit(task.split("Reply with")[0]))
        message = {"role": "assistant", "content": reply}
        return {"id": "1", "choices": [{"index": 0, "message": message, "finish_reason": self.finish}]}

    async def _verify(self, body: dict[str, Any]) -> Any:
        (output,) = body["response"]["output"]
        text = output["content"][0]["text"]
        if "breaks" in text:
            raise HTTPException(500)
        return body | {"reward": None if "unknown" in text else logit(text)}
