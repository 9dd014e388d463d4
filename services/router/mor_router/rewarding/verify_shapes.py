"""Shapes of NeMo Gym's ``/verify``: one response in the form of OpenAI's Responses API, to its reward."""

from __future__ import annotations

from typing import Annotated, Literal

from mor_core import images
from mor_core.errors import Invalid
from mor_core.wire import Documented, Finite, ImagePart, Message, TextPart
from pydantic import ConfigDict, Field

from mor_router.rewarding.coalescer import PromptedResponse


class _Foreign(Documented):
    """Part of NeMo Gym's shape. Fields without use here are kept, because the answer repeats the request."""

    model_config = ConfigDict(extra="allow")


class InputText(_Foreign):
    type: Literal["input_text", "output_text", "text"]
    text: str


class InputImage(_Foreign):
    type: Literal["input_image"]
    image_url: str
    """Data URI. Other addresses are not fetched."""


class InputTurn(_Foreign):
    """Turn of the prompt."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | tuple[Annotated[InputText | InputImage, Field(discriminator="type")], ...]


class CreateParams(_Foreign):
    """Request to the policy, of which the prompt is used."""

    input: str | Annotated[tuple[InputTurn, ...], Field(min_length=1)]
    instructions: str | None = None
    """Text of the system before ``input``."""


class OutputPart(_Foreign):
    type: str
    text: str = ""


class OutputItem(_Foreign):
    """Item of the policy's output; messages are scored, others, such as reasoning, are not."""

    type: str
    content: tuple[OutputPart, ...] | None = None


class PolicyOutput(_Foreign):
    output: Annotated[tuple[OutputItem, ...], Field(max_length=256)]


class VerifyRequest(_Foreign):
    """Request to a resources server of NeMo Gym."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "responses_create_params": {"input": [{"role": "user", "content": "How many bars are there?"}]},
                    "response": {
                        "output": [{"type": "message", "content": [{"type": "output_text", "text": "Four."}]}]
                    },
                }
            ]
        }
    )

    responses_create_params: CreateParams
    response: PolicyOutput

    def prompted(self) -> PromptedResponse:
        """Return the response with its prompt.

        Raises:
            Invalid: an image is no data URI, or the output has no message.
        """
        given = self.responses_create_params
        turns = (InputTurn(role="user", content=given.input),) if isinstance(given.input, str) else given.input
        if given.instructions:
            turns = (InputTurn(role="system", content=given.instructions), *turns)
        shown: dict[str, bytes] = {}
        messages = tuple(_message(turn, shown) for turn in turns)
        said = [item.content or () for item in self.response.output if item.type == "message"]
        if not said:
            raise Invalid("response.output has no item of type 'message'; send the policy's final message")
        text = "".join(part.text for parts in said for part in parts if part.type == "output_text")
        return PromptedResponse(messages, text, shown)

    def rewarded(self, reward: float) -> bytes:
        """Return the body of the answer: this request as JSON, with its reward."""
        return self.model_copy(update={"reward": reward}).model_dump_json(exclude_unset=True).encode()


class VerifyResponse(VerifyRequest):
    """The request with its reward, in logits."""

    reward: Finite


def _message(turn: InputTurn, shown: dict[str, bytes]) -> Message:
    """Convert a turn, and add its images to ``shown`` by hash."""
    role = "system" if turn.role == "developer" else turn.role
    if isinstance(turn.content, str):
        return Message(role=role, content=turn.content)
    parts: list[TextPart | ImagePart] = []
    for part in turn.content:
        if isinstance(part, InputText):
            parts.append(TextPart(text=part.text))
            continue
        content = images.bytes_of_url(part.image_url)
        digest = images.sha256(content)
        shown[digest] = content
        parts.append(ImagePart.of(digest))
    return Message(role=role, content=tuple(parts))
