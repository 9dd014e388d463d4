"""Images travel once: named by hash at first, sent where the service asks, kept for later requests of the caller."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_core.errors import Invalid
from mor_core.images import sha256
from mor_core.missing_images import ImageCache, ImageRounds, MissingImages, parse_missing_images
from mor_core.wire import ImagePart, Message

RED, BLUE = b"red", b"blue"
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
)


def named(value: Any) -> bytes:
    return json.dumps({"missing_images": value}).encode()


def showing(*contents: bytes) -> tuple[Message, ...]:
    return (Message(role="user", content=tuple(ImagePart.of(sha256(content)) for content in contents)),)


@given(
    body=st.binary(max_size=200)
    | ANY_JSON.map(json.dumps).map(str.encode)
    | ANY_JSON.map(named)
    | st.just(b"[" * 30_000)
    | st.just(b'{"a":' * 10_000)
)
@settings(deadline=None)
def test_any_answer_is_an_error_or_hashes(body: bytes) -> None:
    try:
        found = parse_missing_images(body)
    except Invalid:
        return
    assert found and all(len(digest) == 64 for digest in found)


def test_images_are_sent_once_they_are_asked_for() -> None:
    rounds = ImageRounds({sha256(RED): RED, sha256(BLUE): BLUE})
    assert rounds.sent == {}
    rounds.take(named([sha256(RED)]))
    rounds.take(named([sha256(BLUE)]))
    assert rounds.sent == {sha256(RED): RED, sha256(BLUE): BLUE}, "what was sent before is sent again"
    with pytest.raises(Invalid, match="does not name"):
        rounds.take(named([sha256(b"another")]))


def test_an_image_is_kept_for_its_sender_alone() -> None:
    cache = ImageCache(bound=100)
    cache.keep({sha256(RED): RED}, owner="hospital")
    assert cache.resolve([showing(RED)], {}, owner="hospital") == {sha256(RED): RED}
    for sent, owner in (({}, "bank"), ({sha256(BLUE): BLUE}, None)):
        with pytest.raises(MissingImages) as raised:
            cache.resolve([showing(RED)], sent, owner=owner)
        assert raised.value.missing == [sha256(RED)]


def test_an_image_over_the_limit_is_used_and_not_kept() -> None:
    cache = ImageCache(bound=100, largest=3)
    for content in (RED, BLUE):
        cache.keep({sha256(content): content})
    sent = {sha256(BLUE): BLUE}
    assert cache.resolve([showing(RED, BLUE)], sent) == {sha256(RED): RED, sha256(BLUE): BLUE}
    with pytest.raises(MissingImages) as raised:
        cache.resolve([showing(RED, BLUE)], {})
    assert raised.value.missing == [sha256(BLUE)]
