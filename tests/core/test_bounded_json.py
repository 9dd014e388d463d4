"""Whatever JSON a caller sends, it is parsed within bounds, and the service answers others meanwhile."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi.exceptions import RequestValidationError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mor_core import bounded_json
from mor_core.errors import TooLarge
from mor_core.wire import ScoreRequest
from pydantic import TypeAdapter

from tests.core.limited_service import TOKEN, Process, running

MB = 1 << 20
ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


def count(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(count, value.values()))
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


@settings(max_examples=50, deadline=None)
@given(VALUES)
@example({"a": [], "b": [], "c": {}})
def test_what_has_few_enough_values_is_parsed_as_it_is(value: Any) -> None:
    content = json.dumps(value).encode()
    assert bounded_json.parse(ANYTHING, content, most_values=max(1, count(value))) == value


@settings(max_examples=30, deadline=None)
@given(st.lists(VALUES, min_size=3))
def test_what_has_many_more_values_is_refused(value: Any) -> None:
    padded = json.dumps([*value, " " * 1000]).encode()
    with pytest.raises(TooLarge):
        bounded_json.check_values(padded + b"," * (4 * count(value)), count(value))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_an_error_of_their_sender(content: bytes) -> None:
    try:
        bounded_json.parse(TypeAdapter(ScoreRequest), content, most_values=20)
    except (TooLarge, RequestValidationError):
        return


def body(**fields: bytes) -> bytes:
    item = b'{"item_id":"a","messages":[{"role":"user","content":"%s"}],"responses":[%s]}' % (
        fields.get("text", b"q"),
        fields.get("responses", b'"a"'),
    )
    return b'{"items":[%s],"images":{%s}%s}' % (
        fields.get("items", item),
        fields.get("images", b""),
        fields.get("extra", b""),
    )


LARGE = {
    "numbers": (413, lambda: body(items=b"1," * (30 * MB) + b"1")),
    "empty lists": (413, lambda: body(items=b"[]," * (20 * MB) + b"[]")),
    "nesting": (413, lambda: body(items=b"[" * (30 * MB) + b"]" * (30 * MB))),
    "unknown fields": (413, lambda: body(extra=b"".join(b',"a%d":1' % i for i in range(5 * MB)))),
    "short responses": (413, lambda: body(responses=b'"",' * (20 * MB) + b'""')),
    "digits": (422, lambda: body(items=b"1" * (60 * MB))),
    "text": (200, lambda: body(text=b"one word, and " * (4 * MB))),
    "escapes": (200, lambda: body(text=rb"\u00e9" * (10 * MB))),
    "quotes": (200, lambda: body(text=rb"\"" * (30 * MB))),
    "pictures": (200, lambda: body(images=b'"%s":"%s"' % (b"a" * 64, base64.b64encode(os.urandom(44 * MB))))),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("service")) as process:
        yield process


QUICK = ("numbers", "pictures")


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in LARGE]
)
def test_a_body_of_60_mb_does_not_hold_up_others(service: Process, kind: str) -> None:
    """Without bounds, numbers take 46 s and 15 GB. No step of a large body takes over 0.6 s on an idle core."""
    wanted, make = LARGE[kind]
    content = make()
    assert 50 * MB < len(content) <= 64 * MB
    statuses: list[int] = []

    def send() -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        statuses.append(
            httpx.post(f"{service.address}/score", content=content, headers=headers, timeout=60).status_code
        )

    sender = threading.Thread(target=send)
    sender.start()
    slowest = 0.0
    while sender.is_alive():
        slowest = max(slowest, service.healthz_s())
    assert statuses == [wanted]
    assert slowest < 3  # of which most is waiting for a core, where tests share two
    assert service.peak_memory_mb() < 600
