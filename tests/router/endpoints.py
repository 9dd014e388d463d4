"""Reward services for tests, honest, broken and hostile, on one real uvicorn server on loopback."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response, StreamingResponse

TOKEN = "a-token-of-the-reward-service"
POLICY_TOKEN = "a-token-of-the-rollout-service"

Score = Callable[[dict[str, Any], str], float]
"""Item and response to score."""


def words(item: dict[str, Any]) -> str:
    """Return all text of an item's messages."""
    parts = [m["content"] if isinstance(m["content"], list) else [{"text": m["content"]}] for m in item["messages"]]
    return " ".join(part.get("text", "") for content in parts for part in content)


def noise(*key: str) -> float:
    """Return a number in [-1, 1) that depends on ``key`` only."""
    return int(hashlib.sha256("|".join(key).encode()).hexdigest()[:8], 16) / 2**31 - 1


def quality(response: str) -> float:
    """Return the number in a test response, such as ``answer 3.5``."""
    found = re.search(r"-?\d+(\.\d+)?", response)
    return float(found.group()) if found else 0.0


def honest(item: dict[str, Any], response: str) -> float:
    return quality(response)


class Endpoint:
    """Reward service that a test can observe and break while it runs."""

    def __init__(self, url: str, score: Score = honest) -> None:
        self.url = url
        self.score = score
        self.name = url.rsplit("/", 1)[-1]
        self.version = "1"
        self.token = TOKEN
        self.calibration: dict[str, Any] | None = None
        self.asks: dict[str, Any] | None = None
        self.limits = {"items": 64, "responses": 4096, "request_bytes": 64 << 20, "concurrency": 8}
        self.delay_s = 0.0
        self.broken: Callable[[dict[str, Any]], Response | None] | None = None
        self.mend_after: int | None = None
        self.sometimes: Callable[[], Response | None] = lambda: None
        self.mangle: Callable[[list[dict[str, Any]]], list[dict[str, Any]]] | None = None
        self.calls: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.images: dict[str, bytes] = {}
        self.answered = 0
        self.at_once = 0
        self.most_at_once = 0

    async def card(self, request: Request) -> Response:
        if (refusal := self._refuse(request)) is not None:
            return refusal
        model = {"name": self.name, "version": self.version}
        return JSONResponse(
            {
                "model": model,
                "domains": "tests",
                "calibration": self.calibration,
                "privacy": None,
                "asks": self.asks,
                "limits": self.limits,
            }
        )

    async def scores(self, request: Request) -> Response:
        if (refusal := self._refuse(request)) is not None:
            return refusal
        body = await request.json()
        self.calls.append(body)
        self.headers.append(dict(request.headers))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            return self._answer(body)
        finally:
            self.at_once -= 1
            self.answered += 1

    def _answer(self, body: dict[str, Any]) -> Response:
        if (failure := self.sometimes()) is not None:
            return failure
        is_broken = self.broken is not None and (self.mend_after is None or len(self.calls) <= self.mend_after)
        if is_broken and (failure := self.broken(body)) is not None:
            return failure
        self.images |= {digest: base64.b64decode(content) for digest, content in body["images"].items()}
        missing = {digest for item in body["items"] for digest in image_names(item)} - set(self.images)
        if missing:
            return JSONResponse({"missing_images": sorted(missing)}, 409)
        items = [
            {
                "item_id": item["item_id"],
                "status": "ok",
                "scores": [self.score(item, response) for response in item["responses"]],
            }
            for item in body["items"]
        ]
        if self.mangle is not None:
            items = self.mangle(items)
        return Response(
            python_json({"model": {"name": self.name, "version": self.version}, "items": items}),
            media_type="application/json",
        )

    def _refuse(self, request: Request) -> Response | None:
        if request.headers.get("authorization") == f"Bearer {self.token}":
            return None
        got = request.headers.get("authorization", "")
        return JSONResponse({"title": "Not authenticated", "detail": f"unknown token {got}"}, 401)


class Chat:
    """OpenAI-compatible service, or rollout service: ``reply`` makes the texts of a request's choices."""

    def __init__(self, url: str, reply: Callable[[dict[str, Any]], list[str]]) -> None:
        self.url = url
        self.reply = reply
        self.weights_version = 7
        self.calls: list[dict[str, Any]] = []

    async def status(self) -> Response:
        return JSONResponse({"run": "run-1", "weights_version": self.weights_version})

    async def complete(self, request: Request) -> Response:
        if request.headers.get("authorization") not in (f"Bearer {TOKEN}", f"Bearer {POLICY_TOKEN}"):
            return JSONResponse({"detail": "unknown token"}, 401)
        body = await request.json()
        self.calls.append(body)
        choices = [{"index": i, "message": {"content": text}} for i, text in enumerate(self.reply(body))]
        return JSONResponse({"system_fingerprint": f"run-1:{self.weights_version}", "choices": choices})


def python_json(document: Any) -> bytes:
    """Encode as JSON the way Python does, including NaN and Infinity."""
    return json.dumps(document).encode()


def image_names(item: dict[str, Any]) -> list[str]:
    contents = [m["content"] for m in item["messages"] if isinstance(m["content"], list)]
    return [p["image_url"]["url"].removeprefix("sha256:") for c in contents for p in c if p["type"] == "image_url"]


def html(_: dict[str, Any]) -> Response:
    return HTMLResponse("<html>Sign in</html>")


def redirect(_: dict[str, Any]) -> Response:
    return RedirectResponse("http://169.254.169.254/latest/meta-data")


def unavailable(_: dict[str, Any]) -> Response:
    return JSONResponse({"detail": "loading"}, 503, headers={"Retry-After": "0.05"})


class Flood:
    """Response of ten gigabytes that counts the bytes that were taken."""

    def __init__(self) -> None:
        self.sent = 0

    def __call__(self, _: dict[str, Any]) -> Response:
        async def body() -> AsyncIterator[bytes]:
            for _ in range(10 << 10):
                self.sent += 1 << 20
                yield b" " * (1 << 20)
                await asyncio.sleep(0)  # lets the server notice that the connection is closed

        return StreamingResponse(body(), media_type="application/json")


def never(_: dict[str, Any]) -> Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    return StreamingResponse(body(), media_type="application/json")


class Endpoints:
    """Server of the reward services; ``endpoint`` adds one."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self._port: int | None = None
        self.start()

    def start(self) -> None:
        """Serve, after ``stop`` on the same port as before."""
        listener = self.listen() if self._port is None else socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self._server = uvicorn.Server(uvicorn.Config(self.app, log_config=None, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listener]}, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "the reward endpoints did not come up"
            time.sleep(0.01)

    @staticmethod
    def listen() -> socket.socket:
        return socket.create_server(("127.0.0.1", 0))

    def endpoint(self, name: str, score: Score = honest) -> Endpoint:
        path = f"/{len(self.app.routes)}/{name}"
        endpoint = Endpoint(self.address + path, score)
        self.app.add_api_route(f"{path}/v1/card", endpoint.card, methods=["GET"], response_model=None)
        self.app.add_api_route(f"{path}/v1/score", endpoint.scores, methods=["POST"], response_model=None)
        return endpoint

    def chat(self, reply: Callable[[dict[str, Any]], list[str]]) -> Chat:
        path = f"/{len(self.app.routes)}/chat"
        chat = Chat(self.address + path, reply)
        self.app.add_api_route(f"{path}/v1/status", chat.status, methods=["GET"], response_model=None)
        self.app.add_api_route(f"{path}/v1/chat/completions", chat.complete, methods=["POST"], response_model=None)
        return chat

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)


@contextlib.contextmanager
def resetting() -> Iterator[str]:
    """Run a server that accepts connections and resets them."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)

        def run() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, _ = listener.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    connection.close()

        thread = threading.Thread(target=run)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        stop.set()
        thread.join(timeout=5)
