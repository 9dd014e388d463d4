"""Group of responses as an upstream gets it, and the interface of a protocol."""

from __future__ import annotations

import base64
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from mor_core import images
from mor_core.patterns import matching
from mor_core.wire import Documented, ImagePart, Message
from pydantic import Field

from mor_reward.group_scorer import BrokenAnswer

if TYPE_CHECKING:
    from mor_reward.backbones import Picture

CallPath = Annotated[str, matching(r"^/[\x21-\x7e]*$", "a path that begins with '/', without spaces", 500)]
Render = Callable[[tuple[Message, ...], str], str]
"""Function from a conversation and a response to the text that a reward model reads."""
_SMALLEST = 1e-9
"""Smallest distance of a probability from 0 and 1: a float32 that was rounded to 0 or 1 has finite log-odds."""


@dataclass(frozen=True)
class Group:
    """One conversation and the responses to score."""

    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    """In the order of ``messages``; empty where the upstream does not see pictures."""
    responses: tuple[str, ...]
    objective: str | None
    """Objective of the request in words, or ``None``."""
    render: Render

    @cached_property
    def texts(self) -> list[str]:
        """Conversation and response as one text, for each response."""
        return [self.render(self.messages, response) for response in self.responses]

    @property
    def prompt(self) -> str:
        """Texts of the conversation, without pictures."""
        return "\n\n".join(message.text for message in self.messages)

    @cached_property
    def chat(self) -> list[dict[str, Any]]:
        """Conversation in OpenAI's chat shape, with its pictures as data URIs."""
        contents = {picture.sha256: picture.content for picture in self.pictures}
        return [_turn(message, contents) for message in self.messages]

    def answered(self, response: str) -> list[dict[str, Any]]:
        """Return ``chat`` with ``response`` as the assistant's turn."""
        return [*self.chat, {"role": "assistant", "content": response}]


class Calls(Protocol):
    """Calls of an upstream for one group, within its deadline and the bound on calls at a time."""

    async def post(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[bytes]:
        """Send each body to ``path`` and return the answers in their order.

        Raises:
            Unavailable: the upstream is away, or not enough time is left.
            Invalid: the upstream refuses this group.
        """
        ...


class Upstream(Documented, ABC):
    """Serving protocol of a reward model that runs elsewhere, with its settings."""

    health: ClassVar[str] = "/health"
    """Path of the probe; any answer below 500 means that the upstream is up."""
    own_tokens: ClassVar[bool] = False
    """True where the upstream puts special tokens around a text, so that a template's own must not begin it."""
    shows_pictures: ClassVar[bool] = False
    """True where the protocol can carry pictures."""

    model: str | None = Field(None, max_length=200)
    """Name of the model at the upstream."""
    path: CallPath
    """Path of the calls below the upstream's address."""

    @abstractmethod
    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        """Return a raw score for each response; ``None`` where the upstream gives none.

        Raises:
            BrokenAnswer: an answer does not fit the protocol.
            Unavailable, Invalid: see ``Calls.post``.
        """

    def context(self, responses: Sequence[str], objective: str | None) -> str:
        """Return what a score depends on besides its conversation and response; empty for most protocols."""
        return ""

    @property
    def version_path(self) -> str | None:
        """Path whose answer identifies the served model; ``None`` where the protocol has none."""
        return None


def log_odds(probability: float) -> float:
    """Return the log-odds of a probability, in logits."""
    if not 0 <= probability <= 1:
        raise BrokenAnswer("the upstream returned a number outside of 0 to 1 as a probability; unset 'probabilities'")
    bounded = min(max(probability, _SMALLEST), 1 - _SMALLEST)
    return math.log(bounded) - math.log1p(-bounded)


def chosen(values: Sequence[float], label: int | None, *, probabilities: bool) -> float:
    """Return the score among the values of a classifier's labels.

    Raises:
        BrokenAnswer: ``label`` is needed or does not exist.
    """
    if label is None and len(values) != 1:
        raise BrokenAnswer(f"the upstream's model has {len(values)} labels; name the score's with label=INDEX")
    place = label or 0
    if not 0 <= place < len(values):
        raise BrokenAnswer(f"the upstream's model has {len(values)} labels, and label={label} is none of them")
    return log_odds(values[place]) if probabilities else values[place]


def per_response(values: Sequence[Any], group: Group) -> Sequence[Any]:
    """Return ``values``, one for each response.

    Raises:
        BrokenAnswer: there are more or fewer.
    """
    if len(values) != len(group.responses):
        raise BrokenAnswer(f"the upstream returned {len(values)} scores for {len(group.responses)} responses")
    return values


def in_order(pairs: Sequence[tuple[int, float]], group: Group) -> list[float]:
    """Return the scores of (index, score) in the order of the responses.

    Raises:
        BrokenAnswer: an index is missing, doubled or unknown.
    """
    scores = dict(pairs)
    if len(pairs) != len(group.responses) or set(scores) != set(range(len(group.responses))):
        raise BrokenAnswer(f"the upstream did not return one score for each of {len(group.responses)} responses")
    return [scores[place] for place in range(len(group.responses))]


def _turn(message: Message, contents: dict[str, bytes]) -> dict[str, Any]:
    if isinstance(message.content, str) or not contents:
        return {"role": message.role, "content": message.text}
    parts = [
        {"type": "image_url", "image_url": {"url": _data_uri(contents[part.sha256])}}
        if isinstance(part, ImagePart)
        else {"type": "text", "text": part.text}
        for part in message.content
    ]
    return {"role": message.role, "content": parts}


def _data_uri(content: bytes) -> str:
    return f"data:{images.media_type(content)};base64,{base64.b64encode(content).decode()}"
