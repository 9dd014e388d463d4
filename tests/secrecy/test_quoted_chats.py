"""A judge and the policy's service that quote the chat which they refuse: the reason that MoR keeps has none of it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
from mor_core.errors import Unavailable
from mor_core.images import sha256
from mor_core.wire import Message
from mor_router.clients.http import BoundedHttpClient, bearer_client
from mor_router.clients.responses import ClientFailure
from mor_router.config import RouterSettings
from mor_router.learning.labels.judge_labeller import JudgeLabeller
from mor_router.learning.labels.labeller import SampledGroup
from mor_router.learning.sampler import PolicySampler
from PIL import Image
from pydantic import SecretStr

pytestmark = pytest.mark.anyio

QUESTION = "Welche Diagnose passt zu dieser private Aufnahme von Frau Müller?"
RESPONSES = ("a private finding in the left lobe of the brain", "nothing that is private is to be seen here, she said")


def picture() -> bytes:
    """Return a picture of over a megabyte, so that the texts come late in a chat."""
    content = io.BytesIO()
    Image.effect_noise((1200, 1200), 90).save(content, "PNG")
    assert len(content.getvalue()) > 1 << 20
    return content.getvalue()


def refusal(detail: str) -> bytes:
    body = json.dumps({"detail": detail}).encode()
    head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


QUOTES: dict[str, Callable[[str], bytes]] = {
    "detail": refusal,
    "detail in ASCII": lambda text: refusal(json.dumps(text)),
    "content type": lambda text: (
        f"HTTP/1.1 200 OK\r\nContent-Type: {text.encode('ascii', 'replace').decode()}\r\nContent-Length: 0\r\n\r\n"
    ).encode(),
}


@asynccontextmanager
async def refusing(reply: bytes) -> AsyncIterator[str]:
    """Serve one answer to every request, after its body."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(int(length.partition(b":")[2]))
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("kind", QUOTES)
@pytest.mark.parametrize("text", [QUESTION, *RESPONSES])
async def test_a_chat_that_is_refused_is_not_quoted(kind: str, text: str) -> None:
    content = picture()
    parts = [
        {"type": "image_url", "image_url": {"url": f"sha256:{sha256(content)}"}},
        {"type": "text", "text": QUESTION},
    ]
    messages, images = (Message.model_validate({"role": "user", "content": parts}),), {sha256(content): content}
    async with refusing(QUOTES[kind](text)) as url:
        secret = SecretStr("token-of-this-test")
        judge = JudgeLabeller(BoundedHttpClient(bearer_client(httpx.AsyncHTTPTransport(), secret), url, secret), "m")
        policy = PolicySampler(RouterSettings(policy_url=url, service_token=secret))
        try:
            with pytest.raises(Unavailable) as judged:
                await judge.label(SampledGroup(messages, RESPONSES, images), "tone", 10)
            assert "private" not in str(judged.value)
            if text == QUESTION:
                with pytest.raises(ClientFailure) as sampled:
                    await policy.sample(messages, images, 10)
                assert "private" not in str(sampled.value)
        finally:
            await judge.close()
            await policy.close()


async def test_an_answer_of_deep_lists_is_the_judges_failure() -> None:
    body = b"[" * 60_000
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    async with refusing(head + body) as url:
        secret = SecretStr("token-of-this-test")
        judge = JudgeLabeller(BoundedHttpClient(bearer_client(httpx.AsyncHTTPTransport(), secret), url, secret), "m")
        try:
            messages = (Message(role="user", content="a question"),)
            with pytest.raises(Unavailable, match="not a chat completion"):
                await judge.label(SampledGroup(messages, RESPONSES, {}), "tone", 10)
        finally:
            await judge.close()
