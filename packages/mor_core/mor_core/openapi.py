"""Error answers in the OpenAPI document, declared once for all routes of all services.

What any request may get, whatever its route, is declared for each operation: the refusals of the HTTP parser, as plain
text, and those of the guard. A status that follows from the shape of a route is added to it: 401, 403 and 503 where it
takes a token, 404 where its path has a parameter, 400 and 408 where it has a body. The others are declared where they
arise, by ``problems``.
"""

from __future__ import annotations

from typing import Any

from mor_core.problems import MEDIA_TYPE

PARSER_STATUSES = (400, 408, 414, 429, 431, 503)
"""Refusals of ``mor_core.http_protocol``: before or instead of a route, as plain text."""
_GUARD_STATUSES = (413, 415, 422)
"""Refusals of ``mor_core.request_guard`` on routes of every shape: length, encoding, number of query parameters."""

_MEANINGS = {
    400: "The request is not valid HTTP, or the body cannot be read.",
    401: "The token is missing or unknown.",
    403: "The scope of the token does not allow it.",
    404: "There is no such resource.",
    408: "The headers or the body did not arrive in time.",
    409: "The current state does not allow it.",
    413: "The request is over a limit of bytes, pixels or items.",
    414: "Path and query are too long.",
    415: "The body is compressed, or has another content type than the ones listed.",
    422: "A part of the request is not valid; `detail` names it.",
    429: "Too many requests; repeat it after `Retry-After` seconds.",
    431: "The headers are too long or too many.",
    503: "The service, or one that it needs, cannot answer now; repeat the request after `Retry-After` seconds.",
}
_SCHEMA = {
    "type": "object",
    "title": "Problem",
    "description": "Error answer (RFC 9457).",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What was received, what is expected, and the remedy."},
    },
}
_CONTENT = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_TEXT = {"text/plain": {"schema": {"type": "string"}}}
_FASTAPIS_OWN = ("HTTPValidationError", "ValidationError")
"""Schemas of an error answer that no service gives."""


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the ``responses`` argument of a route that answers with these statuses."""
    return {status: {"description": _MEANINGS[status], "content": _CONTENT} for status in statuses}


def add_problems(document: dict[str, Any]) -> None:
    """Complete the error answers of every operation of a document of FastAPI."""
    for operation in (method for path in document["paths"].values() for method in path.values()):
        answers = operation["responses"]
        if "422" in answers:
            answers["422"].pop("content", None)
        own = {int(status) for status in answers if status.isdigit()} | _implied(operation)
        for status in sorted({*own, *PARSER_STATUSES}):
            if status < 400:
                continue
            answer = answers.setdefault(str(status), {})
            content = answer.get("content", _CONTENT) if status in own else {}
            answer["content"] = {**content, **_TEXT} if status in PARSER_STATUSES else content
            answer.setdefault("description", _MEANINGS[status])
        operation["responses"] = dict(sorted(answers.items()))
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _FASTAPIS_OWN:
        schemas.pop(name, None)
    schemas["Problem"] = _SCHEMA


def _implied(operation: dict[str, Any]) -> set[int]:
    """Return the statuses that follow from what an operation takes."""
    found = set(_GUARD_STATUSES)
    places = {parameter["in"] for parameter in operation.get("parameters", ())}
    if "security" in operation:
        found |= {401, 403, 503}
    if "path" in places:
        found |= {404}
    if "requestBody" in operation:
        found |= {400, 408}
    return found
