"""Judge or generative reward model behind OpenAI's chat completions: ratings, or comparisons in both orders."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from mor_core.failures import quote_failure
from mor_core.wire import Wire
from pydantic import AfterValidator, Field

from mor_reward.comparison_strengths import strengths
from mor_reward.group_scorer import BrokenAnswer
from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream

_RUBRIC = "Which answer is right, says what was asked, and is understandable?"
_COMPARE = """\
You compare two answers, A and B, to the conversation above. What counts: {rubric}

Answer A:
{first}

Answer B:
{second}

Which answer is better? Reply with the single letter A or B."""
_RATE = """\
You rate an answer to the conversation above. What counts: {rubric}

Answer:
{answer}

Reply with the rating alone, a whole number from 1, useless, to 10, perfect."""
_LETTER = re.compile(r"\b([AB])\b")
_LOWER_CASE = re.compile(r"\W*(?:answer\W+)?([ab])\W*")
_TIE = re.compile(r"\b(tied?|draw|equal(ly)?|both|same)\b", re.IGNORECASE)
_MOST_CHARACTERS = 20_000
"""Characters of a reply in which a rating is looked for: a long chain of thought."""


def _number_pattern(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"rating_pattern is no regular expression: {quote_failure(error)}") from None
    if groups != 1:
        raise ValueError("rating_pattern needs exactly one group in parentheses, around the number")
    return pattern


class _Text(Wire):
    content: str | None


class _Choice(Wire):
    message: _Text
    finish_reason: str | None = None


class _Completion(Wire):
    choices: Annotated[tuple[_Choice, ...], Field(min_length=1)]


class ChatJudge(Upstream):
    """``POST /v1/chat/completions`` with a rubric.

    ``pairs``: each response is compared with the next ``neighbours`` of its group, in both orders, since judges prefer
    a position (Zheng et al. 2023, "Judging LLM-as-a-judge"); an order that does not agree counts half. The scores are
    the strengths of a Bradley-Terry model of the outcomes. ``rating``: each response is rated alone, and the score is
    the last number that ``rating_pattern`` finds in the reply, as of a generative reward model.
    """

    health: ClassVar[str] = "/v1/models"
    shows_pictures: ClassVar[bool] = True

    protocol: Literal["chat"] = "chat"
    model: str = Field(min_length=1, max_length=200)
    """Name of the model at the upstream."""
    path: CallPath = "/v1/chat/completions"
    mode: Literal["pairs", "rating"] = "pairs"
    """Comparisons of two responses, or a rating of each."""
    rubric: str = Field(_RUBRIC, min_length=1, max_length=20_000)
    """Criteria of the judge; a request's objective in words replaces them."""
    neighbours: int = Field(2, ge=1, le=63)
    """Responses that each is compared with; a group of G costs 2 · G · neighbours calls at most."""
    rating_pattern: Annotated[str, Field(max_length=500), AfterValidator(_number_pattern)] = (
        r"(-?\d+(?:\.\d+)?)(?:\s*(?:/|out of)\s*\d+(?:\.\d+)?)?"
    )
    """Regular expression with one group, the rating; by default a number, without the ``/10`` of ``8/10``."""
    max_tokens: int = Field(16, ge=1, le=32_768)
    """Longest reply, tokens; a generative reward model needs room to think."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        rubric = group.objective or self.rubric
        if self.mode == "rating":
            prompts = [_RATE.format(rubric=rubric, answer=response) for response in group.responses]
            replies = await self._replies(group, prompts, calls)
            return [self._rating(reply) for reply in replies]
        pairs = _neighbours(len(group.responses), self.neighbours)
        if not pairs:
            return [0.0] * len(group.responses)
        orders = [order for first, second in pairs for order in ((first, second), (second, first))]
        prompts = [
            _COMPARE.format(rubric=rubric, first=group.responses[first], second=group.responses[second])
            for first, second in orders
        ]
        wins = np.zeros((len(group.responses), len(group.responses)))
        for (first, second), reply in zip(orders, await self._replies(group, prompts, calls), strict=True):
            better = _first_is_better(reply)
            wins[first, second] += 0.5 if better is None else float(better)
            wins[second, first] += 0.5 if better is None else float(not better)
        return strengths(wins)

    def context(self, responses: Sequence[str], objective: str | None) -> str:
        """Return rubric and, for comparisons, the whole group: a strength is one among these responses."""
        return json.dumps([objective or self.rubric, *(responses if self.mode == "pairs" else ())])

    @property
    def version_path(self) -> str | None:
        return "/v1/models"

    async def _replies(self, group: Group, prompts: Sequence[str], calls: Calls) -> list[str]:
        bodies: list[dict[str, Any]] = [
            {
                "model": self.model,
                "messages": [*group.chat, {"role": "user", "content": prompt}],
                "temperature": 0,
                "max_tokens": self.max_tokens,
            }
            for prompt in prompts
        ]
        return [_said(parse(_Completion, answer).choices[0]) for answer in await calls.post(self.path, bodies)]

    def _rating(self, reply: str) -> float:
        found = re.findall(self.rating_pattern, reply)
        try:
            return float(found[-1])
        except (IndexError, ValueError):
            raise BrokenAnswer("the judge's reply holds no rating; correct rating_pattern") from None


def _said(choice: _Choice) -> str:
    """Return a reply without the thoughts before it. One that is cut off after a lone letter, as by ``max_tokens=1``,
    says all that is asked.

    Raises:
        BrokenAnswer: the reply was cut off elsewhere, so that a letter or number in it may be part of a thought.
    """
    reply = (choice.message.content or "")[-_MOST_CHARACTERS:].rpartition("</think>")[2]
    cut = choice.finish_reason == "length" and not _LOWER_CASE.fullmatch(reply.lower())
    if cut or "<think>" in reply:
        raise BrokenAnswer("the judge's reply was cut off; give it more max_tokens")
    return reply


def _neighbours(responses: int, most: int) -> list[tuple[int, int]]:
    """Return pairs of places on a ring, each place with its next ``most``, without repeats: a connected design."""
    pairs = {
        (min(place, other), max(place, other))
        for place in range(responses)
        for step in range(1, min(most, responses - 1) + 1)
        if (other := (place + step) % responses) != place
    }
    return sorted(pairs)


def _first_is_better(reply: str) -> bool | None:
    """Return whether a judge chose answer A; ``None`` for a tie: it names both letters, or says so. In lower case a
    letter counts alone: "a" is also a word.

    Raises:
        BrokenAnswer: it chose nothing, as a model that declines to judge.
    """
    letters = set(_LETTER.findall(reply))
    if len(letters) == 1:
        return letters == {"A"}
    if lower := _LOWER_CASE.fullmatch(reply.lower()):
        return lower[1] == "a"
    if not letters and not _TIE.search(reply):
        raise BrokenAnswer("the judge's reply names neither A nor B; use a model that follows the rubric")
    return None
