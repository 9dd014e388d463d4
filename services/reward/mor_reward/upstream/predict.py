"""Text classification of Hugging Face's TEI."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from mor_core.wire import Finite, Wire
from pydantic import Field

from mor_reward.group_scorer import BrokenAnswer
from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream, per_response


class _Label(Wire):
    score: Finite
    label: str


_Labels = Annotated[tuple[_Label, ...], Field(min_length=1)]


class Predict(Upstream):
    """``POST /predict`` with raw scores; the answer names the labels of each text, best first."""

    own_tokens: ClassVar[bool] = True

    protocol: Literal["predict"] = "predict"
    path: CallPath = "/predict"
    label: str | None = Field(None, max_length=200)
    """Name of the label whose value is the score; needed where the model has several."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        body = {"inputs": [[text] for text in group.texts], "raw_scores": True, "truncate": False}
        (answer,) = await calls.post(self.path, [body])
        return [self._chosen(labels) for labels in per_response(parse(tuple[_Labels, ...], answer), group)]

    @property
    def version_path(self) -> str | None:
        return "/info"

    def _chosen(self, labels: tuple[_Label, ...]) -> float:
        if self.label is None and len(labels) > 1:
            raise BrokenAnswer(f"the upstream's model has {len(labels)} labels; name the score's with label=NAME")
        for each in labels:
            if self.label in (None, each.label):
                return each.score
        raise BrokenAnswer(f"the upstream's model has no label {self.label!r}; correct label=NAME")
