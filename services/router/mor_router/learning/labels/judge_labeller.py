"""Labeller that calls a judge: an OpenAI-compatible model that compares two responses, in both orders.

Its choice counts only where it is the same in both orders, because models prefer a position (Zheng et al. 2023,
"Judging LLM-as-a-judge").
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import re
from collections.abc import Mapping
from typing import Any

from mor_core import images
from mor_core.errors import Unavailable
from mor_core.wire import ImagePart, Message

from mor_router.clients.http import BoundedHttpClient
from mor_router.clients.responses import ClientFailure
from mor_router.learning.labels.labeller import Pair, SampledGroup

_ANSWER_BYTES = 64 << 10
"""Bound on the judge's response."""
_MAX_TOKENS = 8
"""Room for a letter and some punctuation."""
_LETTER = re.compile(r"\b([AB])\b")
_TASK = """\
You compare two answers, A and B, to the question above. What counts: {objective}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with the single letter A or B."""


class JudgeLabeller:
    """Labeller by the choice of a judge between two responses."""

    def __init__(self, http: BoundedHttpClient, model: str) -> None:
        self._http = http
        self._model = model

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> tuple[Pair, ...]:
        """Label two responses drawn at random, because a judge compares pairs."""
        one, other = random.sample(range(len(sampled.responses)), 2)
        try:
            async with asyncio.timeout(timeout_s):
                forth, back = await asyncio.gather(
                    self._first_is_better(sampled, one, other, objective, timeout_s),
                    self._first_is_better(sampled, other, one, objective, timeout_s),
                )
        except TimeoutError as error:
            raise Unavailable(
                f"the judge {self._model!r} did not answer within {timeout_s:g} s; raise MOR_DEADLINE_S"
            ) from error
        except ClientFailure as failure:
            raise Unavailable(f"the judge {self._model!r}: {failure}") from failure
        if forth is None or back is None or forth == back:
            return ()
        return ((one, other),) if forth else ((other, one),)

    async def _first_is_better(
        self, sampled: SampledGroup, first: int, second: int, objective: str, timeout_s: float
    ) -> bool | None:
        """Return whether the judge prefers the first response; ``None`` where it names no letter, or both."""
        task = _TASK.format(objective=objective, first=sampled.responses[first], second=sampled.responses[second])
        messages = [*openai_messages(sampled.messages, sampled.images), {"role": "user", "content": task}]
        body = {"model": self._model, "messages": messages, "temperature": 0, "max_tokens": _MAX_TOKENS}
        _, answer = await self._http.post(
            "/v1/chat/completions", json.dumps(body).encode(), _ANSWER_BYTES, round(1000 * timeout_s)
        )
        letters = set(_LETTER.findall(contents(answer)[0].upper()))
        return None if len(letters) != 1 else letters == {"A"}

    async def close(self) -> None:
        await self._http.close()


def openai_messages(messages: tuple[Message, ...], images: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """Convert a conversation to the OpenAI chat shape, with its pictures as data URIs."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message.content, str):
            turns.append({"role": message.role, "content": message.content})
            continue
        parts = [
            {"type": "image_url", "image_url": {"url": _data_uri(images[part.sha256])}}
            if isinstance(part, ImagePart)
            else {"type": "text", "text": part.text}
            for part in message.content
        ]
        turns.append({"role": message.role, "content": parts})
    return turns


def contents(body: bytes) -> list[str]:
    """Return the texts of a chat completion's choices.

    Raises:
        ClientFailure: the body is not a chat completion.
    """
    try:
        return [str(choice["message"]["content"]) for choice in json.loads(body)["choices"]] or [""]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ClientFailure("schema", "the answer is not a chat completion") from error


def _data_uri(content: bytes) -> str:
    """Encode an anchor's picture, which was decoded once when it was uploaded, so its format is known."""
    return f"data:{images.media_type(content)};base64,{base64.b64encode(content).decode()}"
