"""Callers of the API share the embedder in turns, live groups wait for none of them, and work ends with its caller."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from collections.abc import Awaitable

import numpy as np
import pytest
from mor_core.images import sha256
from mor_router.embedding import HONEYPOTS, LIVE, Embedder, embedding_for
from mor_router.embedding.embedder import Sender
from mor_router.embedding.hashed_features import ColoursAndEdges, HashedWords
from PIL import Image

from tests.router.conftest import TOKENS, Api

pytestmark = pytest.mark.anyio

UNIT_S = 0.1


class Slow(HashedWords):
    """Encoder that takes ``UNIT_S`` for a text and remembers it."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    def __call__(self, text: str) -> np.ndarray:
        self.begun.append(text)
        time.sleep(UNIT_S)
        return super().__call__(text)


async def embedded(embedder: Embedder, sender: Sender, *texts: str) -> None:
    with embedding_for(sender):
        for text in texts:
            await embedder.text(text)


async def took(work: Awaitable[None]) -> float:
    started = time.monotonic()
    await work
    return time.monotonic() - started


async def test_a_caller_with_much_work_delays_another_by_one_unit_of_work() -> None:
    slow = Slow()
    embedder = Embedder(slow, ColoursAndEdges(), cache=100)
    # Forty requests at once, by one caller.
    hoard = [asyncio.create_task(embedded(embedder, "greedy", f"g{i}")) for i in range(40)]
    await asyncio.sleep(UNIT_S / 2)
    before = len(slow.begun)
    await embedded(embedder, "modest", "m0", "m1")
    position = {text: slow.begun.index(text) - before for text in ("m0", "m1")}
    assert position["m0"] <= 1
    assert position["m1"] <= 3
    for task in hoard:
        task.cancel()
    await asyncio.gather(*hoard, return_exceptions=True)


async def test_live_groups_wait_for_no_caller_whatever_its_name() -> None:
    slow = Slow()
    embedder = Embedder(slow, ColoursAndEdges(), cache=100)
    names = ["", "(live groups)", "LIVE", str(LIVE), LIVE.name, str(LIVE.value)] * 7
    hoard = [asyncio.create_task(embedded(embedder, name, f"g{i}")) for i, name in enumerate(names)]
    await asyncio.sleep(UNIT_S / 2)
    assert await took(embedded(embedder, LIVE, "live")) < 5 * UNIT_S
    for task in hoard:
        task.cancel()
    await asyncio.gather(*hoard, return_exceptions=True)


async def test_honeypots_have_turns_of_their_own_whatever_a_token_is_called() -> None:
    slow = Slow()
    embedder = Embedder(slow, ColoursAndEdges(), cache=100)
    names = ["(honeypots)", str(HONEYPOTS), HONEYPOTS.name]
    hoard = [asyncio.create_task(embedded(embedder, name, f"{name}{i}")) for i in range(10) for name in names]
    await asyncio.sleep(UNIT_S / 2)
    before = len(slow.begun)
    await embedded(embedder, HONEYPOTS, "honeypot")
    assert slow.begun.index("honeypot") - before <= len(names)  # one round over all senders
    for task in hoard:
        task.cancel()
    await asyncio.gather(*hoard, return_exceptions=True)


async def test_work_of_a_caller_that_has_gone_is_not_begun() -> None:
    slow = Slow()
    embedder = Embedder(slow, ColoursAndEdges(), cache=100)
    gone = [asyncio.create_task(embedded(embedder, "gone", f"g{i}", f"h{i}")) for i in range(20)]
    await asyncio.sleep(UNIT_S / 2)
    before = len(slow.begun)
    for task in gone:
        task.cancel()
    await asyncio.gather(*gone, return_exceptions=True)
    await embedded(embedder, "next", "n")
    assert len(slow.begun) - before <= 2  # perhaps one more, and the next caller's


async def test_a_long_text_is_cut_before_it_is_embedded() -> None:
    embedder = Embedder(HashedWords(), ColoursAndEdges(), cache=10)
    text = "how many bars are there " * 10_000
    np.testing.assert_array_equal(
        await embedder.text(text + "x" * 57_000_000), await embedder.text(text[: HashedWords.most_characters])
    )


def bombs(number: int, side: int = 8000) -> list[bytes]:
    """Return pictures of 64 megapixels in some 70 kB, which differ in a byte behind their end."""
    content = io.BytesIO()
    Image.new("L", (side, side)).save(content, "PNG")
    return [content.getvalue() + bytes([i]) for i in range(number)]


async def test_a_request_has_one_budget_of_pixels(api: Api) -> None:
    pictures = bombs(5)
    assert sum(map(len, pictures)) < 1 << 20
    images = {sha256(content): base64.b64encode(content).decode() for content in pictures}
    parts = [{"type": "image_url", "image_url": {"url": f"sha256:{digest}"}} for digest in images]
    item = {"item_id": "g", "messages": [{"role": "user", "content": parts}], "responses": ["a", "b"]}
    for path, body in (
        ("/v1/reward", {"items": [item], "images": images}),
        ("/v1/route", {"messages": item["messages"], "images": images}),
    ):
        answer = await api.call("POST", path, body, token=TOKENS["service"])
        assert answer.status_code == 413
        assert "pixels together" in answer.json()["detail"]


async def test_57_mb_of_text_are_refused(api: Api) -> None:
    item = {
        "item_id": "g",
        "messages": [{"role": "user", "content": "some words " * (57_000_000 // 11)}],
        "responses": ["a"],
    }
    assert await took(refused(api, {"items": [item]})) < 5


async def refused(api: Api, body: object) -> None:
    answer = await api.call("POST", "/v1/reward", body, token=TOKENS["service"])
    assert answer.status_code == 413
    assert "characters" in answer.json()["detail"]
