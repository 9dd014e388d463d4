"""Measurement of hostile and broken clients: ranking accuracy of the reward and their weight after five refits.

``python bench/hostile.py [scenario ...]`` writes ``bench/results/hostile.json``; other scenarios keep
their figures. A real router with a real Valkey calls real HTTP endpoints on loopback; scores and truth are synthetic
(``tests/router/hostile.py`` has the clients): six honest specialists, two for each of three kinds of questions, each
of which misleads on the other kinds, and the clients of a scenario.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.fernet import Fernet
from machine import end_children_on_sigterm, record
from mor_core import bundled_valkey
from mor_core.auth import hash_token
from mor_router.app import create_app
from mor_router.config import RouterSettings
from mor_router.store import ANCHOR_HOLDOUT
from pydantic import SecretStr
from redis.asyncio import Redis
from tables.results import read

sys.path.append(str(Path(__file__).parent.parent))

from tests.router.endpoints import Endpoints
from tests.router.hostile import BROKEN, HOSTILE, Outcome, Plan, live_through
from tests.router.live_groups import reward_groups

_TOKEN = "the-bench-is-admin-here"
_PORT = 6399
"""Port of the queue server; not the default one, which may be in use."""
_SHARE = 0.1
"""Share of calls that are honeypots: twice the default, because a life has few calls."""
_RESERVE_KEY = "0" * 64
_SCENARIOS = ("clean", *HOSTILE, *BROKEN)


class Api:
    def __init__(self, http: httpx.AsyncClient, app: Any) -> None:
        self._http = http
        self._app = app

    async def ok(self, method: str, path: str, body: Any = None) -> Any:
        response = await self._http.request(method, path, json=body)
        if not response.is_success:
            raise SystemExit(f"{method} {path}: {response.text}")
        return response.json() if response.content else None

    async def upload(self, name: str, content: bytes) -> None:
        headers = {"Content-Type": "application/x-ndjson"}
        response = await self._http.put(f"/v1/objectives/{name}/anchors", content=content, headers=headers)
        if not response.is_success:
            raise SystemExit(f"anchors: {response.text}")

    async def reward_groups(self, items: list[dict[str, Any]], images: dict[str, str]) -> list[dict[str, Any]]:
        return await reward_groups(self._app.state.router, items, images)

    async def settled(self) -> None:
        await self._app.state.router.trust.honeypots.settled()


@asynccontextmanager
async def router(folder: Path, deadline_s: float) -> AsyncIterator[Api]:
    """Start a router on an empty store."""
    tokens = folder / "tokens.json"
    tokens.write_text(f'[{{"name": "bench", "scope": "admin", "sha256": "{hash_token(_TOKEN)}"}}]')
    url = f"redis://127.0.0.1:{_PORT}/0"
    async with Redis.from_url(url) as redis:
        await redis.flushall()
        await redis.hset(ANCHOR_HOLDOUT, "key", _RESERVE_KEY)  # holds out the same anchors in all scenarios
    settings = RouterSettings(
        redis_url=SecretStr(url),
        tokens_file=tokens,
        secret_key=SecretStr(Fernet.generate_key().decode()),
        audit_log=folder / "audit.jsonl",
        allow_loopback=True,
        deadline_s=deadline_s,
        worker=False,
        anchor_share=_SHARE,
    )
    app = create_app(settings)
    headers = {"Authorization": f"Bearer {_TOKEN}"}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://router", headers=headers, timeout=600
        ) as http,
    ):
        yield Api(http, app)


def figures(outcome: Outcome) -> dict[str, Any]:
    bad = {name: weight for name, weight in outcome.weights.items() if name.startswith("bad")}
    return {
        "ranking_accuracy": outcome.accuracy,
        "accuracy_by_round": outcome.accuracy_by_round,
        "largest_hostile_weight": max(bad.values(), default=None),
        "states": {name: state for name, state in outcome.states.items() if name in bad},
        "honest_clients_with_weight": sum(
            state == "active" for name, state in outcome.states.items() if name not in bad
        ),
        "lost_groups": outcome.lost,
        "seconds_per_call": {
            "p50": float(np.median(outcome.call_seconds)),
            "p95": float(np.quantile(outcome.call_seconds, 0.95)),
        },
    }


async def measure(scenario: str, folder: Path, endpoints: Endpoints) -> dict[str, Any]:
    deadline_s = 2.0 if scenario in BROKEN else 60.0
    async with router(folder, deadline_s) as api:
        return figures(await live_through(api, endpoints, scenario, Plan()))


def main() -> None:
    end_children_on_sigterm()
    named = sys.argv[1:] or list(_SCENARIOS)
    unknown = set(named) - set(_SCENARIOS)
    if unknown:
        raise SystemExit(f"unknown scenarios {sorted(unknown)}; choose from {', '.join(_SCENARIOS)}")
    found: dict[str, Any] = (read("hostile") or {}).get("scenarios", {})
    endpoints = Endpoints()
    with tempfile.TemporaryDirectory(prefix="mor-hostile-") as name:
        folder = Path(name)
        command = [str(bundled_valkey.server_binary()), *bundled_valkey.arguments(_PORT, folder)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            time.sleep(1)
            for scenario in named:
                found[scenario] = asyncio.run(measure(scenario, folder, endpoints))
                print(scenario, found[scenario])
                print(record("hostile", {"plan": vars(Plan()), "anchor_share": _SHARE, "scenarios": found}))
        finally:
            server.terminate()
            server.wait(timeout=10)
            endpoints.stop()


if __name__ == "__main__":
    main()
