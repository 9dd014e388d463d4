"""Open Inference Protocol v2, as KServe, MLServer and Triton speak it: a tensor of texts to a tensor of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal
from urllib.parse import quote

from mor_core.wire import Finite, Wire
from pydantic import Field

from mor_reward.group_scorer import BrokenAnswer
from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream, chosen, log_odds


class _Output(Wire):
    name: str
    shape: tuple[int, ...]
    data: tuple[Finite | str | tuple[Finite, ...], ...]


class _Outputs(Wire):
    outputs: tuple[_Output, ...]


class _Label(Wire):
    score: Finite
    label: str


class OpenInference(Upstream):
    """``POST /v2/models/{model}/infer``. Texts of labels, as MLServer's Hugging Face runtime writes, hold the
    probability of the most probable label."""

    own_tokens: ClassVar[bool] = True
    health: ClassVar[str] = "/v2/health/ready"

    protocol: Literal["kserve"] = "kserve"
    model: str = Field(min_length=1, max_length=200)
    """Name of the model at the upstream, part of the paths."""
    path: CallPath = "/v2/models/{model}/infer"
    input: str = Field("text", max_length=200)
    """Name of the input tensor, of type BYTES."""
    output: str | None = Field(None, max_length=200)
    """Name of the output tensor; by default the only one."""
    label: int | str | None = None
    """Column of the score where a response has several; the label's name where the output holds labels."""
    probabilities: bool = False
    """Values are probabilities; take their log-odds."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        tensor = {"name": self.input, "shape": [len(group.texts)], "datatype": "BYTES", "data": group.texts}
        body = {"inputs": [tensor]}
        (answer,) = await calls.post(self.path.replace("{model}", quote(self.model)), [body])
        output = self._selected(parse(_Outputs, answer).outputs)
        data = output.data
        if data and all(isinstance(value, str) for value in data):
            if len(data) != len(group.responses):
                raise BrokenAnswer(f"the output has {len(data)} labels for {len(group.responses)} responses")
            return self._of_labels([parse(_Label, str(value).encode()) for value in data])
        numbers = [float(one) for value in data for one in (value if isinstance(value, tuple) else (value,))]
        width, rest = divmod(len(numbers), len(group.responses))
        if width == 0 or rest or (width > 1 and output.shape[:1] != (len(group.responses),)):
            raise BrokenAnswer(
                f"the output has {len(numbers)} numbers of shape {list(output.shape)[:8]} for {len(group.responses)} "
                "responses; make it one row for each"
            )
        rows = [numbers[start : start + width] for start in range(0, len(numbers), width)]
        column = self.label if isinstance(self.label, int) else None
        return [chosen(row, column, probabilities=self.probabilities) for row in rows]

    @property
    def version_path(self) -> str | None:
        return f"/v2/models/{quote(self.model)}"

    def _selected(self, outputs: tuple[_Output, ...]) -> _Output:
        if self.output is None and len(outputs) == 1:
            return outputs[0]
        for each in outputs:
            if each.name == self.output:
                return each
        raise BrokenAnswer(f"the upstream returned {len(outputs)} outputs; name the score's with output=NAME")

    def _of_labels(self, found: Sequence[_Label]) -> list[float]:
        """Return the log-odds of the label among two.

        Raises:
            BrokenAnswer: the score's label is not stated, or is none of them.
        """
        others = {each.label for each in found} - {self.label}
        if self.label is None or len(others) > 1:
            raise BrokenAnswer(
                "the output holds labels; name the score's with label=NAME"
                if self.label is None
                else f"the output holds other labels than {self.label!r}, at least two; correct label=NAME"
            )
        return [log_odds(each.score) * (1 if each.label == self.label else -1) for each in found]
