"""Requests that no client library makes: broken bytes, texts and numbers in bodies, headers, paths and queries."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

DEEP = 100_000
"""Levels of nesting beyond any parser's stack."""
TEXTS = (
    "", "\x00", "\ud800", "..", "../../etc/passwd", "\u202e", "%00", "a" * 10_000, "<script>", "{{7*7}}",
    "\r\nX: y", "${jndi:ldap://x}", "__proto__", "constructor", "=1+1", "<image>", "<|image_pad|>",
    "<end_of_utterance>", "null", "NaN", "-1", "1e999", "9" * 400,
)  # fmt: skip
NUMBERS = (
    float("nan"), float("inf"), -float("inf"), 10**400, -(10**400), 1 << 63, -(1 << 63) - 1, 1e308, 5e-324, -0.0,
    0,
)  # fmt: skip
LEAVES: tuple[Any, ...] = (
    *TEXTS, *NUMBERS, None, True, [], {}, [[[[[[]]]]]], {"": {"": {}}}, {"\ud800": 1}, {"__proto__": 1},
)  # fmt: skip
HEADERS = (
    b"", b"\xff\xfe", b"a" * 4000, b"\"", b"W/\"", b"*", b", ,", b"nan", b"inf", b"-1", b"1e999", b"0x10",
    b"bytes=0-", b"bytes=-1", b"bytes=9-1,0-0", b"00-0-0-zz", b"gzip;q=nan", b"multipart/form-data",
    b"multipart/form-data; boundary=", b"application/json; charset=utf-7", b"text/plain",
    b"application/x-www-form-urlencoded", b"Bearer", b"/;q=",
)  # fmt: skip
NAMES = (
    "if-none-match", "range", "last-event-id", "traceparent", "accept-encoding", "accept", "content-type",
    "x-mor-deadline-ms", "x-forwarded-for", "forwarded", "content-encoding", "origin", "cookie", "if-range",
    "if-modified-since", "expect", "te", "x-http-method-override",
)  # fmt: skip
PATHS = (
    "%00", "%ff", "..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%ed%a0%80", "a" * 2000, "9" * 400, "-1", "%20",
    "%3Cscript%3E", "latest", "9223372036854775808", "nan", "~", ":", "%25",
)  # fmt: skip
QUERIES = (
    "", "limit=9999999999999999999999", "limit=nan", "limit=%ff", "limit=1&limit=2", "since_step=-1",
    "max_points=1e3", "run=%00", "acknowledged=maybe", "%ff=%fe", "&&&=", "a" * 2000,
)  # fmt: skip


def holes(document: Any) -> list[tuple[Any, Any]]:
    """Return container and key of each value in a document."""
    keys = list(document) if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    return [place for key in keys for place in ((document, key), *holes(document[key]))]


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode(errors="surrogatepass")


@st.composite
def bodies(draw: st.DrawFn, valid: list[Any]) -> bytes:
    """Bytes of a body: none, any, broken JSON, or one of ``valid`` with a value replaced."""
    kind = draw(st.sampled_from(("mutant", "mutant", "mutant", "bytes", "deep", "repeated key", "cut", "not UTF-8")))
    if kind == "bytes" or not valid:
        return draw(st.binary(max_size=200))
    document = json.loads(json.dumps(draw(st.sampled_from(valid))))
    if kind == "deep":
        return b"[" * DEEP + b"]" * DEEP
    if kind == "cut":
        return _encoded(document)[: draw(st.integers(0, 40))]
    if kind == "not UTF-8":
        return _encoded(document).replace(b'"', b'"\xff', 1)
    if kind == "repeated key":
        inner = _encoded(document)[1:-1]
        return b"{" + inner + b"," + inner + b"}"
    places = holes(document)
    if places:
        container, key = draw(st.sampled_from(places))
        container[key] = draw(st.sampled_from(LEAVES))
    return _encoded(document)


headers = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(HEADERS)), max_size=3)
