"""Text classification of vLLM and SGLang: raw logits of a sequence classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from mor_core.wire import Finite, Wire
from pydantic import Field

from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream, chosen, in_order, per_response

_Values = Annotated[tuple[Finite, ...], Field(min_length=1)]


class _Classified(Wire):
    index: int
    probs: _Values


class _Classification(Wire):
    data: tuple[_Classified, ...]


class _One(Wire):
    data: Annotated[tuple[_Classified, ...], Field(min_length=1, max_length=1)]


class _Embedded(Wire):
    embedding: _Values


class Classify(Upstream):
    """``POST /classify`` of vLLM, with the activation off, or SGLang's, whose values are raw.

    With ``chat`` the upstream fills in its own template, pictures included, one call for each response.
    """

    own_tokens: ClassVar[bool] = True
    shows_pictures: ClassVar[bool] = True

    protocol: Literal["classify"] = "classify"
    path: CallPath = "/classify"
    server: Literal["vllm", "sglang"] = "vllm"
    """Server behind the address; their bodies differ."""
    chat: bool = False
    """Send conversations rather than texts (vLLM), as pictures need."""
    label: int | None = Field(None, ge=0)
    """Index of the label whose value is the score; needed where the model has several."""
    probabilities: bool = False
    """Values are probabilities even so, as of servers that cannot leave the activation out; take their log-odds."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        if self.server == "sglang":
            (answer,) = await calls.post(self.path, [self._body(text=group.texts)])
            found = per_response(parse(tuple[_Embedded, ...], answer), group)
            return [self._chosen(each.embedding) for each in found]
        if self.chat or group.pictures:
            bodies = [self._body(messages=group.answered(response)) for response in group.responses]
            answers = await calls.post(self.path, bodies)
            return [self._chosen(parse(_One, answer).data[0].probs) for answer in answers]
        (answer,) = await calls.post(self.path, [self._body(input=group.texts)])
        rows = [(row.index, self._chosen(row.probs)) for row in parse(_Classification, answer).data]
        return in_order(rows, group)

    @property
    def version_path(self) -> str | None:
        return "/v1/models" if self.server == "vllm" else "/get_model_info"

    def _body(self, **content: Any) -> dict[str, Any]:
        named = {} if self.model is None else {"model": self.model}
        return named | content | ({"use_activation": False} if self.server == "vllm" else {})

    def _chosen(self, values: tuple[float, ...]) -> float:
        return chosen(values, self.label, probabilities=self.probabilities)
