"""Reward service in front of a slow upstream: ``python bench/upstreams.py`` writes ``bench/results/upstreams.json``.

The upstream takes 0.2 s for a call, eight calls at a time. 16 groups arrive in one request at ``mor-reward serve
--upstream``, once for each protocol. The bound is the time that the upstream needs for its calls alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from machine import end_children_on_sigterm, record
from mor_core.auth import hash_token, new_token

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.reward.upstream_servers import Upstreams

GROUPS, RESPONSES = 16, 4
DELAY_S, AT_ONCE = 0.2, 8
ROUNDS = 5
PROTOCOLS: dict[str, dict[str, Any]] = {
    "openrlhf": {},
    "classify": {},
    "score": {"model": "rm"},
    "rerank": {},
    "predict": {"label": "good"},
    "kserve": {"model": "rm", "label": 1},
    "chat": {"model": "judge", "mode": "rating"},
    "verify": {},
}
_BIN = Path(sys.executable).parent
_STARTS_S = 120.0


class SlowUpstream:
    """Upstream that answers ``AT_ONCE`` calls at a time, each after ``DELAY_S``."""

    def __init__(self) -> None:
        self.upstreams = Upstreams()
        self.upstreams.delay_s = DELAY_S
        self._places = asyncio.Semaphore(AT_ONCE)

    @property
    def calls(self) -> int:
        """Calls for scores until now."""
        return len(self.upstreams.bodies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.upstreams.app(scope, receive, send)
            return
        async with self._places:
            await self.upstreams.app(scope, receive, send)


def measure(protocol: str, options: dict[str, Any]) -> dict[str, float]:
    """Return the seconds of a request by way of the service, the upstream's calls, and the ratio to their bound."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with _service(protocol, options, url) as (address, token):
            return asyncio.run(_rounds(listener, address, token))


async def _rounds(listener: socket.socket, address: str, token: str) -> dict[str, float]:
    upstream = SlowUpstream()
    server = uvicorn.Server(uvicorn.Config(upstream, log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    ratios, seconds = [], []
    headers = {"Authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(base_url=address, headers=headers, timeout=60) as http:
        for number in range(ROUNDS + 1):
            before, begun = upstream.calls, time.perf_counter()
            reply = await http.post("/v1/score", json=_request(number))
            elapsed = time.perf_counter() - begun
            items = reply.raise_for_status().json()["items"]
            assert all(item["status"] == "ok" for item in items), items[0]
            if number:  # the first opens the connections
                ratios.append(elapsed / (math.ceil((upstream.calls - before) / AT_ONCE) * DELAY_S))
                seconds.append(elapsed)
    server.should_exit = True
    await serving
    return {
        "seconds": statistics.median(seconds),
        "calls": upstream.calls // (ROUNDS + 1),
        "ratio": statistics.median(ratios),
        "worst_ratio": max(ratios),
    }


def _request(number: int) -> dict[str, Any]:
    def item(group: int) -> dict[str, Any]:
        messages = [{"role": "user", "content": [{"type": "text", "text": f"question {group}?"}]}]
        responses = [f"answer {number}.{group}{place}" for place in range(RESPONSES)]
        return {"item_id": str(group), "messages": messages, "responses": responses}

    return {"contract": "mor.reward/1", "items": [item(group) for group in range(GROUPS)]}


@contextlib.contextmanager
def _service(protocol: str, options: dict[str, Any], url: str) -> Iterator[tuple[str, str]]:
    """Run ``mor-reward serve`` in front of the upstream; yield its address and a token."""
    token = new_token()
    with tempfile.TemporaryDirectory() as folder:
        tokens, address = Path(folder, "tokens.json"), Path(folder, "address")
        tokens.write_text(json.dumps([{"name": "bench", "scope": "service", "sha256": hash_token(token)}]))
        given = [part for name, value in options.items() for part in ("--upstream-set", f"{name}={json.dumps(value)}")]
        command = [str(_BIN / "mor-reward"), "serve", "--upstream", protocol, "--upstream-url", url, *given]
        process = subprocess.Popen(
            [*command, "--tokens-file", str(tokens), "--host", "127.0.0.1", "--port", "0", "--port-file", str(address)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + _STARTS_S
            while not address.exists():
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit(f"the service for {protocol} did not start")
                time.sleep(0.1)
            yield address.read_text().strip(), token
        finally:
            process.terminate()
            process.wait(30)


def main() -> None:
    end_children_on_sigterm()
    found = {}
    for protocol, options in PROTOCOLS.items():
        found[protocol] = measure(protocol, options)
        print(f"{protocol}: {json.dumps(found[protocol])}", flush=True)
    figures = {"groups": GROUPS, "responses": RESPONSES, "delay_s": DELAY_S, "at_once": AT_ONCE, "protocols": found}
    print(record("upstreams", figures))


if __name__ == "__main__":
    main()
