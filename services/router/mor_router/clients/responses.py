"""Parser of clients' responses: one result per item. Nothing missing or malformed is ever turned into a zero."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pydantic_core
from mor_core.failures import describe, describe_failure
from mor_core.wire import LARGEST_SCORE, ItemScores, ModelRef, ScoreItem
from pydantic import TypeAdapter, ValidationError

ResponseStatus = Literal["ok", "unscorable", "error", "timeout", "circuit_open", "not_asked"]
FailureReason = Literal[
    "connect", "timeout", "circuit_open", "refused", "busy", "status", "content_type", "too_large", "schema", "item",
    "egress", "images", "secret", "unexpected",
]  # fmt: skip
"""Reason why a call failed; it is a metric label, so the set is bounded."""

_MODEL = TypeAdapter(ModelRef)
_ITEM = TypeAdapter(ItemScores)
_BYTES_PER_SCORE = 40
"""A double in JSON has at most 24 characters; with separator and white space it stays below this."""
_BYTES_PER_ITEM = 8 << 10
"""Room for an item's status and detail."""
_BYTES_PER_BODY = 4 << 10
"""Room for the model's name and version, and the envelope."""
_BYTES_PER_ID_CHARACTER = 6
"""A character escaped in JSON: backslash, ``u`` and four digits."""
_DETAIL_CHARACTERS = 500
"""Longest detail that is kept: it goes into records, logs and the dashboard."""
_COMPARED_BYTES = 1 << 20
"""Part of a request that a reason is compared with: the texts come before the pictures."""
_PIECE = 16
"""Bytes of the pieces that are compared, every 8 bytes: shorter ones occur in both by chance."""
_ESCAPES = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
"""Characters as JSON in ASCII writes them: a service that quotes its input as such a text escapes them once more."""
_MOST_SEARCHED = 64 << 20
"""Bytes of texts in which the pieces of one answer's reasons are searched together: this takes some 12 ms, in which
nothing else happens. A client may fail for every item, with another reason each time."""
REPEATED = "its reason repeats the request and is not shown"
_NOT_COMPARED = "its reason is not shown: it was not compared with the request, because this takes too long"
_MOST_FIELDS = 32
"""Fields of an object that are looked at one by one. The parser describes every fault, and an answer of megabytes with
nothing else would hold up the groups of all clients for seconds."""


class ClientFailure(Exception):
    """Failure of a whole call to a client. ``str()`` states what was received and the remedy."""

    def __init__(
        self, reason: FailureReason, detail: str, *, retry: bool = False, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail[:_DETAIL_CHARACTERS])
        self.reason: FailureReason = reason
        self.retry = retry
        """True if the same call may succeed soon."""
        self.retry_after_s = retry_after_s
        """Pause that the client requested, in seconds."""


@dataclass(frozen=True)
class ClientResponse:
    """A client's response for one item: scores, or why there are none."""

    status: ResponseStatus
    scores: tuple[float, ...] | None = None
    detail: str | None = None
    model: ModelRef | None = None
    seconds: float | None = None
    of_call: bool = False
    """True where the whole call failed: another attempt may succeed."""

    @property
    def may_change(self) -> bool:
        """True where another attempt may succeed: a model that is broken for a while fails item by item."""
        return self.of_call or self.status == "error"


def repeats(text: str, sent: bytes) -> bool:
    """Return whether a reason has a piece, of 24 bytes or more, of the JSON in UTF-8 that was sent.

    The text ends in logs, dead letters and pages, where prompts and responses must not be.
    """
    return _has_one(sent, _pieces(text))


def _pieces(text: str) -> set[bytes]:
    found = set()
    for form in {text, _ESCAPES.sub(lambda escapes: str(json.loads(f'"{escapes[0]}"')), text)}:
        written = json.dumps(form, ensure_ascii=False)[1:-1].encode(errors="replace")
        found |= {written[start : start + _PIECE] for start in range(0, len(written) - _PIECE + 1, _PIECE // 2)}
    return found


def _has_one(sent: bytes, pieces: Collection[bytes]) -> bool:
    head = sent[:_COMPARED_BYTES]
    return any(piece in head for piece in pieces)


@contextmanager
def private(sent: bytes) -> Iterator[None]:
    """Replace the reason of a failure in the body that repeats what was sent: names of fields, headers, an item's id.

    Raises:
        ClientFailure: the failure in the body, with a reason that may be shown.
    """
    try:
        yield
    except ClientFailure as failure:
        if repeats(str(failure), sent):
            failure.args = (REPEATED,)
        raise


def response_size_limit(items: Sequence[ScoreItem]) -> int:
    """Return the most bytes that an honest response to ``items`` can have."""
    return _BYTES_PER_BODY + sum(
        _BYTES_PER_ITEM + _BYTES_PER_ID_CHARACTER * len(item.item_id) + _BYTES_PER_SCORE * len(item.responses)
        for item in items
    )


def parse_response(body: bytes, items: Sequence[ScoreItem]) -> dict[str, ClientResponse]:
    """Return a response for each of ``items``. A malformed item does not affect the others.

    Raises:
        ClientFailure: the body as a whole is not a ``ScoreResponse``, or names an item that was not sent.
    """
    try:
        document: Any = pydantic_core.from_json(body)
    except ValueError as error:
        raise ClientFailure("schema", f"the answer is not JSON ({describe_failure(error)})") from error
    if not isinstance(document, dict) or not isinstance(document.get("items"), list):
        raise ClientFailure("schema", "the answer is not a ScoreResponse: {model, items} is wanted")
    named = document.get("model")
    if isinstance(named, dict) and len(named) > _MOST_FIELDS:
        raise ClientFailure("schema", f"the answer names no model ({len(named)} fields)")
    try:
        model = _MODEL.validate_python(named, extra="ignore")
    except ValidationError as error:
        raise ClientFailure("schema", f"the answer names no model ({describe(error)})") from error
    sent = {item.item_id: item for item in items}
    answers: dict[str, ClientResponse] = {}
    reasons = _Reasons()
    for entry in document["items"]:
        name = entry.get("item_id") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in sent:
            raise ClientFailure("schema", f"the answer names item {str(name)[:60]!r}, which was not sent")
        if name in answers:
            raise ClientFailure("schema", "the answer names an item twice")
        answers[name] = _parse_item(entry, sent[name], model, reasons)
    for name in sent:
        answers.setdefault(name, ClientResponse("error", detail="the answer leaves this item out", model=model))
    return answers


def _parse_item(entry: Mapping[str, Any], item: ScoreItem, model: ModelRef, reasons: _Reasons) -> ClientResponse:
    if (fault := _fault(entry, item)) is not None:
        return ClientResponse("error", detail=fault, model=model)
    try:
        parsed = _ITEM.validate_python(entry, extra="ignore")
    except ValidationError as error:
        return ClientResponse("error", detail=reasons.shown(f"malformed item ({describe(error)})", item), model=model)
    if parsed.scores is None:
        detail = reasons.shown(parsed.detail or "no reason given", item)
        return ClientResponse("unscorable" if parsed.status == "unscorable" else "error", detail=detail, model=model)
    return ClientResponse("ok", scores=parsed.scores, model=model)


def _fault(entry: Mapping[str, Any], item: ScoreItem) -> str | None:
    """Return what is wrong with an item that may have very many faults, counted and without the client's words."""
    if len(entry) > _MOST_FIELDS:
        return f"malformed item ({len(entry)} fields)"
    scores = entry.get("scores")
    if not isinstance(scores, list):
        return None
    if len(scores) != len(item.responses):
        return f"{len(scores)} scores for {len(item.responses)} responses"
    if others := sum(type(score) not in (int, float) for score in scores):
        return f"malformed item ({others} of {len(scores)} scores are no numbers)"
    if bad := [score for score in scores if not abs(score) <= LARGEST_SCORE]:
        shown = bad[0] if isinstance(bad[0], float) else f"beyond {LARGEST_SCORE:g}"
        wanted = f"finite ones within ±{LARGEST_SCORE:g} are wanted"
        return f"{len(bad)} of {len(scores)} scores are {shown}; {wanted}"
    return None


class _Reasons:
    """Reasons of one answer as they are kept: bounded, and without the texts that were sent."""

    def __init__(self) -> None:
        self._left = _MOST_SEARCHED

    def shown(self, detail: str, item: ScoreItem) -> str:
        if self._left <= 0:
            return _NOT_COMPARED
        bounded = detail[:_DETAIL_CHARACTERS]
        sent = item.model_dump_json(include={"messages", "responses"}).encode()
        pieces = _pieces(bounded)
        self._left -= len(pieces) * min(len(sent), _COMPARED_BYTES)
        return REPEATED if _has_one(sent, pieces) else bounded
