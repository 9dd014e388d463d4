"""Reward services that cost little, in a process of their own: ``python bench/load/reward_clients.py``.

They keep the contract, pictures included, and score a response by a hash of their name and its text. The first line of
the output is the address of the server, below which the services are ``/0``, ``/1`` and so on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn

TOKEN = "a-token-of-the-reward-service"
_LIMITS = {"items": 64, "responses": 4096, "request_bytes": 64 << 20, "concurrency": 8}
_CARD: dict[str, Any] = {"domains": "load", "calibration": None, "privacy": None, "asks": None, "limits": _LIMITS}

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class RewardClients:
    """ASGI application of all services."""

    def __init__(self) -> None:
        self._pictures: dict[str, set[str]] = {}

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        _, name, _, route = scope["path"].split("/")
        if route == "card":
            await _answer(send, {"model": _model(name), **_CARD})
            return
        body, more = bytearray(), True
        while more:
            part = await receive()
            body += part.get("body", b"")
            more = part.get("more_body", False)
        status, answer = self._scores(name, json.loads(body))
        await _answer(send, answer, status)

    def _scores(self, name: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        known = self._pictures.setdefault(name, set())
        for digest, content in request["images"].items():
            base64.b64decode(content)
            known.add(digest)
        missing = {digest for item in request["items"] for digest in _pictures(item)} - known
        if missing:
            return 409, {"missing_images": sorted(missing)}
        items = [
            {
                "item_id": item["item_id"],
                "status": "ok",
                "scores": [score(name, response) for response in item["responses"]],
            }
            for item in request["items"]
        ]
        return 200, {"model": _model(name), "items": items}


def score(name: str, response: str) -> float:
    """Score a response: the number at its end, if any, and an error of the service's own in [-1, 1]."""
    found = re.search(r"-?\d+\.\d+$", response)
    return (float(found.group()) if found else 0.0) + zlib.crc32(f"{name}|{response}".encode()) / 2**31 - 1


def _model(name: str) -> dict[str, str]:
    return {"name": f"client-{name}", "version": "1"}


def _pictures(item: dict[str, Any]) -> list[str]:
    contents = [message["content"] for message in item["messages"] if isinstance(message["content"], list)]
    parts = [part for content in contents for part in content if part["type"] == "image_url"]
    return [part["image_url"]["url"].removeprefix("sha256:") for part in parts]


async def _answer(send: Send, body: dict[str, Any], status: int = 200) -> None:
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    server = uvicorn.Server(uvicorn.Config(RewardClients(), log_config=None, lifespan="off"))
    asyncio.run(server.serve(sockets=[listener]))


if __name__ == "__main__":
    main()
