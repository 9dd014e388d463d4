"""Cross-encoders: relevance of a response to a prompt, by ``/score`` (vLLM) and ``/rerank`` (vLLM, TEI, Jina)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from mor_core.wire import Finite, Wire
from pydantic import AliasChoices, Field

from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream, in_order, log_odds


class _Scored(Wire):
    index: int
    score: Finite = Field(validation_alias=AliasChoices("score", "relevance_score"))


class _Scores(Wire):
    rows: tuple[_Scored, ...] = Field(validation_alias=AliasChoices("data", "results"))


class _CrossEncoder(Upstream):
    own_tokens: ClassVar[bool] = True

    probabilities: bool = False
    """Values are probabilities; take their log-odds."""

    @property
    def version_path(self) -> str | None:
        return "/v1/models"

    def _named(self, **content: Any) -> dict[str, Any]:
        return ({} if self.model is None else {"model": self.model}) | content

    def _ordered(self, rows: Sequence[_Scored], group: Group) -> list[float]:
        values = in_order([(row.index, row.score) for row in rows], group)
        return [log_odds(value) for value in values] if self.probabilities else values


class Score(_CrossEncoder):
    """``POST /score`` of vLLM, with the activation off."""

    protocol: Literal["score"] = "score"
    path: CallPath = "/score"

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        body = self._named(text_1=group.prompt, text_2=list(group.responses), use_activation=False)
        (answer,) = await calls.post(self.path, [body])
        return self._ordered(parse(_Scores, answer).rows, group)


class Rerank(_CrossEncoder):
    """``POST /rerank`` of vLLM, Jina and Cohere, or of Hugging Face's TEI; raw scores wherever the server has them."""

    protocol: Literal["rerank"] = "rerank"
    path: CallPath = "/rerank"
    server: Literal["vllm", "tei"] = "vllm"
    """Server behind the address; ``vllm`` for Jina's and Cohere's bodies too."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        if self.server == "tei":
            body = {"query": group.prompt, "texts": list(group.responses), "raw_scores": not self.probabilities}
            (answer,) = await calls.post(self.path, [body])
            return self._ordered(parse(tuple[_Scored, ...], answer), group)
        body = self._named(query=group.prompt, documents=list(group.responses), use_activation=False)
        (answer,) = await calls.post(self.path, [body])
        return self._ordered(parse(_Scores, answer).rows, group)

    @property
    def version_path(self) -> str | None:
        return "/info" if self.server == "tei" else "/v1/models"
