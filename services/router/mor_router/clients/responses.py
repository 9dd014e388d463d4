"""What clients answer: parsed without trust, one verdict per item. Nothing in here is ever turned into a zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_core
from mor_core.problems import describe
from mor_core.wire import ItemScores, ModelRef, ScoreItem
from pydantic import TypeAdapter, ValidationError

Status = Literal["ok", "unscorable", "error", "timeout", "circuit_open"]
Reason = Literal[
    "connect", "timeout", "circuit_open", "refused", "busy", "status", "content_type", "too_large", "schema", "item",
    "egress", "images", "secret",
]  # fmt: skip
"""Why a call failed: a bounded metric label."""

_MODEL = TypeAdapter(ModelRef)
_ITEM = TypeAdapter(ItemScores)
_BYTES_PER_SCORE = 40
_BYTES_PER_ITEM = 8 << 10
_BYTES_PER_RESPONSE = 4 << 10
_DETAIL_CHARACTERS = 500
_LARGEST = 1e100
_FIELDS = {"model", "items"}


class ClientFailure(Exception):
    """A call to a client failed as a whole. ``str()`` says what was got and what to do."""

    def __init__(self, reason: Reason, detail: str, *, retry: bool = False, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.reason: Reason = reason
        self.retry = retry
        """Whether the same call may succeed soon."""
        self.retry_after_s = retry_after_s
        """What the client asked for, seconds."""


@dataclass(frozen=True)
class Answer:
    """A client's verdict on one item."""

    status: Status
    scores: tuple[float, ...] | None = None
    detail: str | None = None
    model: ModelRef | None = None
    seconds: float | None = None


def size_limit(items: Sequence[ScoreItem]) -> int:
    """Most bytes that an honest answer about ``items`` can have."""
    return _BYTES_PER_RESPONSE + sum(
        _BYTES_PER_ITEM + 6 * len(item.item_id) + _BYTES_PER_SCORE * len(item.responses) for item in items
    )


def parse(body: bytes, items: Sequence[ScoreItem]) -> dict[str, Answer]:
    """One answer for every one of ``items``; what is wrong with one item leaves the others alone.

    Raises:
        ClientFailure: the body as a whole is no ``ScoreResponse``, or it speaks of an item that was not asked about.
    """
    try:
        document: Any = pydantic_core.from_json(body)
    except ValueError as error:
        raise ClientFailure("schema", f"the answer is not JSON ({error})") from error
    if not isinstance(document, dict) or not isinstance(document.get("items"), list) or set(document) - _FIELDS:
        raise ClientFailure("schema", "the answer is no ScoreResponse: {model, items} is wanted")
    try:
        model = _MODEL.validate_python(document.get("model"))
    except ValidationError as error:
        raise ClientFailure("schema", f"the answer names no model ({describe(error)})") from error
    asked = {item.item_id: item for item in items}
    answers: dict[str, Answer] = {}
    for entry in document["items"]:
        name = entry.get("item_id") if isinstance(entry, dict) else None
        if name not in asked:
            raise ClientFailure("schema", f"the answer speaks of item {str(name)[:60]!r}, which was not asked about")
        if name in answers:
            raise ClientFailure("schema", f"the answer speaks of item {name!r} twice")
        answers[name] = _verdict(entry, asked[name], model)
    for name in asked:
        answers.setdefault(name, Answer("error", detail="the answer leaves this item out", model=model))
    return answers


def _verdict(entry: Mapping[str, Any], item: ScoreItem, model: ModelRef) -> Answer:
    scores = entry.get("scores")
    if isinstance(scores, list):
        bad = [score for score in scores if isinstance(score, int | float) and not abs(score) <= _LARGEST]
        if bad:
            shown = bad[0] if isinstance(bad[0], float) else f"beyond {_LARGEST:g}"
            detail = f"{len(bad)} of {len(scores)} scores are {shown}; finite ones within ±{_LARGEST:g} are wanted"
            return Answer("error", detail=detail, model=model)
    try:
        parsed = _ITEM.validate_python(entry)
    except ValidationError as error:
        return Answer("error", detail=f"malformed item ({describe(error)})"[:_DETAIL_CHARACTERS], model=model)
    if parsed.scores is None:
        detail = (parsed.detail or "no reason given")[:_DETAIL_CHARACTERS]
        return Answer("unscorable" if parsed.status == "unscorable" else "error", detail=detail, model=model)
    if len(parsed.scores) != len(item.responses):
        return Answer("error", detail=f"{len(parsed.scores)} scores for {len(item.responses)} responses", model=model)
    return Answer("ok", scores=parsed.scores, model=model)
