"""Descriptions of exceptions that quote no data: for logs, traces, dead letters, run errors and readiness.

An exception of a library may quote what it was given: ``KeyError`` a key, ``ValueError`` a text, a template its prompt,
a Redis command its arguments. Its type and its place in the source say what failed; the message is kept only where it
describes the environment (a refused connection, a full disk) or was written in MoR, whose messages quote no private
data. Where nothing private is in reach, as at the start of a process, ``quote_failure`` keeps every message.
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from mor_core.field_names import unknown_field
from mor_core.hidden_secrets import hide_secrets
from mor_core.patterns import words_of
from mor_core.printable import visible

LONGEST = 500
"""Longest description, characters: enough for a cause, whatever a library quotes after it."""
SHOWN_ERRORS = 8
"""Validation errors that a message lists; more do not help the reader."""
_LONGEST_PROBLEM = 300
"""Longest description of one of them, characters."""
_MOST_FRAMES = 50
"""Frames of a traceback that are logged, the outermost and the innermost: a recursion has a thousand."""
_OURS = re.compile(r"^(mor_\w+|three_domains)(\.|$)")
_OUR_FILES = re.compile(r".*/((?:mor_\w+|three_domains)/.*\.py)$")
_WRAPPERS = ("mor_core/tasks.py", "mor_core/timed_calls.py")
"""Files whose frames only pass a call on."""
_NUMERIC = re.compile(r"/torch/|(?:^|/)mor_\w+/")
"""Files in which a ``RuntimeError`` comes from torch, whose messages describe shapes, types and memory."""
_ENVIRONMENT = (
    OSError,
    TimeoutError,
    MemoryError,
    ImportError,
    UnicodeError,
    json.JSONDecodeError,
    httpx.TransportError,
)
"""Types whose messages describe the environment, or the place of a flaw and not the text around it."""
_ENVIRONMENT_NAMES = {
    "redis.exceptions.ConnectionError",
    "redis.exceptions.TimeoutError",
    "redis.exceptions.BusyLoadingError",
    "redis.exceptions.NoPermissionError",
    "redis.exceptions.OutOfMemoryError",
    "torch.OutOfMemoryError",
    "sqlite3.OperationalError",
    "psycopg.OperationalError",
}
"""The same, of libraries that not every service has."""
_SAFE_WARNINGS = (DeprecationWarning, FutureWarning, ImportWarning, ResourceWarning, RuntimeWarning, SyntaxWarning)
"""Types of warnings that describe code and numbers; a ``UserWarning`` may quote a value, as pydantic's do."""
_PEER_BYTES = re.compile(r"[\s:]*(?:bytearray\()?b['\"].*", re.DOTALL)
"""Bytes of the other end, or of a header, that a message about broken HTTP quotes at its end."""
_NO_TLS = ("WRONG_VERSION_NUMBER", "wrong version number", "record layer failure")
"""Parts of OpenSSL's messages about an answer that is not TLS."""
_NO_HTTP = ("Server disconnected without sending a response", "illegal status line")
"""Beginnings of httpx's messages about an end that takes TLS alone."""
_ARGUMENTS = re.compile(r"^Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
"""Beginning of the message of a failed Redis pipeline, with the first arguments of the command."""


def describe_failure(error: BaseException) -> str:
    """Describe an exception in one printable line, without data that it may quote: a message, or type and place."""
    # A path is for the operator, who finds it in the log, and not for whoever reads this.
    message = error.strerror if isinstance(error, OSError) and error.strerror else _message(error)
    name = type(error).__name__
    if message is not None and _is_ours(type(error)):
        return message
    if message is None:
        place = _place(error)
        return f"{name} in {place}" if place else name
    return f"{name}: {message}" if message else name


def quote_failure(error: BaseException) -> str:
    """Describe an exception with its message, where no private data is in reach; secrets are still removed."""
    message = describe(error) if isinstance(error, ValidationError) else _text(error)
    return message if _is_ours(type(error)) and message else f"{type(error).__name__}: {message}"


def describe(error: ValidationError | RequestValidationError) -> str:
    """Describe validation errors by field and problem, without the input, which may be private."""
    found = error.errors()
    title = error.title if isinstance(error, ValidationError) else ""
    lines = [
        f"{visible('.'.join(map(str, e['loc']))[:_LONGEST_PROBLEM]) or 'body'}: {problem_of(e, title)}"
        for e in found[:SHOWN_ERRORS]
    ]
    more = [f"and {len(found) - SHOWN_ERRORS} more"] if len(found) > SHOWN_ERRORS else []
    return "; ".join(lines + more)


def problem_of(error: Any, title: str = "") -> str:
    """Return the problem of a validation error; pydantic quotes the input in that of an unknown kind of a union.

    ``title``: that of the whole error, which tells the fields that there are.
    """
    if error["type"] == "extra_forbidden" and title:
        return unknown_field(title, error["loc"])
    if error["type"] == "union_tag_invalid":
        return f"Input should have {error['ctx']['discriminator']} one of {error['ctx']['expected_tags']}"
    if error["type"] == "string_pattern_mismatch" and (words := words_of(error["ctx"]["pattern"])) is not None:
        return f"should be {words}"
    if error["type"] == "too_short" and error["ctx"].get("field_type") == "Value":  # of a secret
        return f"should have at least {error['ctx']['min_length']} characters"
    return visible(error["msg"]).removeprefix("Value error, ")[:_LONGEST_PROBLEM]


def describe_warning(message: Warning | str, category: type[Warning], filename: str) -> str:
    """Describe a warning of a library in one printable line, without data that it may quote: a text, or its type."""
    if issubclass(category, _SAFE_WARNINGS) or _NUMERIC.search(filename):
        return f"{category.__name__}: {visible(hide_secrets(str(message)[: 4 * LONGEST]))[:LONGEST]}"
    return category.__name__


def traceback_of(error: BaseException) -> list[dict[str, Any]]:
    """Return an exception and those that it follows from, for JSON: type, message if it is kept, frames, no locals."""
    return [
        {
            "exc_type": type(one).__name__,
            "exc_value": _message(one) or "",
            "is_cause": is_cause,
            "is_group": isinstance(one, BaseExceptionGroup),
            "frames": [
                {"filename": frame.filename, "lineno": frame.lineno, "name": frame.name}
                for frame in _frames(one.__traceback__)
            ],
            "exceptions": [traceback_of(part) for part in one.exceptions]
            if isinstance(one, BaseExceptionGroup)
            else [],
        }
        for one, is_cause in chain(error)
    ]


def format_traceback(error: BaseException, indent: str = "") -> str:
    """Return the same for people, in the order of Python's own tracebacks."""
    parts = []
    for one, is_cause in reversed(list(chain(error))):
        frames = "".join(traceback.format_list(_frames(one.__traceback__)))
        message = _message(one)
        title = type(one).__name__ if not message else f"{type(one).__name__}: {message}"
        text = f"Traceback (most recent call last):\n{frames}{title}"
        if isinstance(one, BaseExceptionGroup):
            text += "".join(f"\n{format_traceback(part, '  | ')}" for part in one.exceptions)
        parts.append(text + (_FOLLOWS[is_cause] if one is not error else ""))
    return "\n".join(indent + line for line in "\n".join(parts).split("\n"))


_FOLLOWS = {
    True: "\n\nThe above exception was the direct cause of the following exception:\n",
    False: "\n\nDuring handling of the above exception, another exception occurred:\n",
}


def chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield an exception and those before it, each with whether it is the explicit cause of the one before."""
    seen: set[int] = set()
    following: BaseException | None = error
    is_cause = False
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following, is_cause
        is_cause = following.__cause__ is not None
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)


def _frames(found: TracebackType | None) -> list[traceback.FrameSummary]:
    frames = list(traceback.extract_tb(found))
    half = _MOST_FRAMES // 2
    return frames if len(frames) <= _MOST_FRAMES else [*frames[:half], *frames[-half:]]


def _message(error: BaseException) -> str | None:
    """Return the message of an exception if it quotes no data, else ``None``."""
    if isinstance(error, ValidationError | RequestValidationError):
        return describe(error)
    if isinstance(error, BaseExceptionGroup):
        return f"{len(error.exceptions)} exceptions"
    kind = type(error)
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    if _is_ours(kind) or names & _ENVIRONMENT_NAMES or (isinstance(error, _ENVIRONMENT) and not _is_foreign(error)):
        return _text(error)
    if "redis.exceptions.ResponseError" in names and _text(error).startswith("WRONGTYPE"):  # a fixed text
        return _text(error)
    if kind is RuntimeError and error.__traceback__ is not None:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        return _text(error) if _NUMERIC.search(innermost) else None
    return None


def _is_foreign(error: BaseException) -> bool:
    """Return whether a library made a message of its own for an ``OSError``, as requests does of the whole address."""
    return isinstance(error, OSError) and type(error).__module__ != "builtins" and not error.strerror


def _is_ours(kind: type[BaseException]) -> bool:
    return _OURS.match(kind.__module__) is not None


def _text(error: BaseException) -> str:
    """Return the message of an exception, printable and bounded; a library's ``__str__`` may fail."""
    try:
        message = str(error)
    except Exception as broken:
        message = f"no message: its __str__ raises {type(broken).__name__}"
    message = _ARGUMENTS.sub("", message)
    hint = _scheme_hint(error, message) if isinstance(error, httpx.TransportError) else ""
    if isinstance(error, httpx.ProtocolError):
        message = _PEER_BYTES.sub("", message)
    message += hint
    return visible(hide_secrets(message[: 4 * LONGEST]))[:LONGEST]


def _scheme_hint(error: httpx.TransportError, message: str) -> str:
    """Return what to do where the address has the scheme of the other protocol; the messages do not say that."""
    if any(sign in message for sign in _NO_TLS):
        return "; the other end speaks plain HTTP: write http:// in its address"
    request = getattr(error, "_request", None)
    if message.startswith(_NO_HTTP) and request is not None and request.url.scheme == "http":
        return "; if the other end speaks HTTPS, write https:// in its address"
    return ""


def _place(error: BaseException) -> str | None:
    """Return file and line of the innermost frame, and of the innermost one in MoR if that is another."""
    frames = [
        (frame, _OUR_FILES.sub(r"\1", frame.filename))
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.endswith(_WRAPPERS)
    ]
    if not frames:
        return None
    ours = next((f"{name}:{frame.lineno}" for frame, name in reversed(frames) if name != frame.filename), None)
    last, name = frames[-1]
    place = f"{'/'.join(Path(name).parts[-2:] if name == last.filename else [name])}:{last.lineno}"
    return place if ours in (None, place) else f"{place}, called in {ours}"
