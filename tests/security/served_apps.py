"""The four services' real apps on loopback, each on a thread, with a token of every scope and something to find."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from mor_core.auth import Scope, hash_token
from mor_reward.app import create_app as create_reward
from mor_reward.config import RewardSettings
from mor_rollout import environment
from mor_rollout.app import create_app as create_rollout
from mor_rollout.config import RolloutSettings
from mor_router.app import create_app as create_router
from mor_trainer.app import create_app as create_trainer
from mor_trainer.config import ControlSettings
from pydantic import SecretStr

from tests.certificates import NO_AUTHORITIES
from tests.ports import free_port
from tests.router.endpoints import TOKEN, Endpoints
from tests.settings import router_settings
from tests.trainer.kit import make_spec, write_prompts

SERVICES = ("reward", "router", "rollout", "trainer")
TOKENS = {scope.value: f"token-of-scope-{scope.value}" for scope in Scope}
SERVICES_DRAW = "ignore:Do not use the `random` module:hypothesis.errors.HypothesisDeprecationWarning"
"""The services run in this process and draw random numbers while hypothesis watches for such in strategies."""
_LIMITS = httpx.Limits(keepalive_expiry=2.0)
"""Shorter than uvicorn's, so that no request meets a connection that the service is closing."""
_READY_S = 120.0
_SCORER = "def score(messages, responses, images):\n    return [float(len(text)) for text in responses]\n"


def bearer(scope: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[scope]}"}


@dataclass(frozen=True)
class ServedApp:
    """Service that runs, and names of things that it has, by the name of their path parameter."""

    name: str
    app: FastAPI
    address: str
    known: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[str, Any] = field(default_factory=dict)
    """Values of a request's body with which it gets further than the first check."""

    @property
    def openapi(self) -> dict[str, Any]:
        return self.app.openapi()

    def http(self, scope: str | None = "admin") -> httpx.Client:
        headers = {} if scope is None else bearer(scope)
        return httpx.Client(base_url=self.address, headers=headers, timeout=60, limits=_LIMITS, verify=NO_AUTHORITIES)


def write_tokens(folder: Path) -> Path:
    rows = [{"name": scope, "scope": scope, "sha256": hash_token(token)} for scope, token in TOKENS.items()]
    path = folder / "tokens.json"
    path.write_text(json.dumps(rows))
    return path


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve an app on a thread and yield its address once it is ready."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: server.started and httpx.get(f"{address}/readyz", verify=NO_AUTHORITIES).is_success, thread)
        yield address
    finally:
        server.should_exit = True
        thread.join(timeout=60)


def _wait(ready: Callable[[], bool], thread: threading.Thread) -> None:
    deadline = time.monotonic() + _READY_S
    while not ready():
        assert thread.is_alive(), "the service ended while it started"
        assert time.monotonic() < deadline, "the service was not ready in time"
        time.sleep(0.05)


def _reward(folder: Path, _redis_url: str, _model: Path) -> Iterator[ServedApp]:
    (folder / "scorer.py").write_text(_SCORER)
    app = create_reward(RewardSettings(function=f"{folder / 'scorer.py'}:score", tokens_file=write_tokens(folder)))
    with serving(app) as address:
        yield ServedApp("reward", app, address)


def _router(folder: Path, redis_url: str, _model: Path) -> Iterator[ServedApp]:
    endpoints = Endpoints()
    app = create_router(router_settings(redis_url, write_tokens(folder), folder))
    try:
        with serving(app) as address:
            url = endpoints.endpoint("known").url
            served = ServedApp("router", app, address, {"name": "known", "version": 1}, {"url": url, "token": TOKEN})
            with served.http() as http:
                client = {"url": url, "domains": "tests", "token": TOKEN, "state": "active"}
                http.post("/v1/clients", json={"name": "known", **client}).raise_for_status()
                http.post("/v1/objectives", json={"name": "known", "text": "helpful answers"}).raise_for_status()
            yield served
    finally:
        endpoints.stop()


def _rollout(folder: Path, redis_url: str, model: Path) -> Iterator[ServedApp]:
    settings = RolloutSettings(
        model=str(model),
        backend="transformers",
        max_model_len=256,
        weights_dir=folder / "weights",
        redis_url=SecretStr(redis_url),
        tokens_file=write_tokens(folder),
        generate_timeout_s=10,
        self_test=False,
    )
    environment.prepare(settings)
    app = create_rollout(settings)
    with serving(app) as address:
        yield ServedApp("rollout", app, address)


def _trainer(folder: Path, redis_url: str, model: Path) -> Iterator[ServedApp]:
    settings = ControlSettings(
        runs_dir=folder / "runs", redis_url=SecretStr(redis_url), tokens_file=write_tokens(folder), run_lease_s=3600
    )
    app = create_trainer(settings)
    with serving(app) as address:
        served = ServedApp("trainer", app, address)
        spec = make_spec(model, write_prompts(folder, 4)).model_dump(mode="json")
        with served.http() as http:
            run = http.post("/v1/runs", json=spec).raise_for_status().json()["id"]
        known = {"run": run, "name": "client", "alert": 1, "letter": 1}
        yield ServedApp("trainer", app, address, known, {name: spec[name] for name in ("model", "prompts")})


_STARTS = {"reward": _reward, "router": _router, "rollout": _rollout, "trainer": _trainer}


@contextmanager
def all_served(folder: Path, redis_url: str, model: Path) -> Iterator[dict[str, ServedApp]]:
    """Serve all four; ``redis_url`` is of a server that they have for themselves."""
    with ExitStack() as stack:
        found = {}
        for name in SERVICES:
            own = folder / name
            own.mkdir()
            found[name] = stack.enter_context(contextmanager(_STARTS[name])(own, redis_url, model))
        yield found
