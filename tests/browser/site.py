"""The real run-control process with runs of a scripted worker, and pages of a real browser on it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from mor_core.auth import hash_token
from mor_core.settings import StreamSettings
from mor_core.streams import connect
from playwright.async_api import Browser, BrowserContext, Page, async_playwright
from pydantic import SecretStr
from redis.asyncio import Redis
from safetensors.numpy import save_file

from tests.browser import story
from tests.router.endpoints import TOKEN, Endpoints
from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import TOKENS, Processes, bearer, make_spec, write_prompts

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_ARGUMENTS = (
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
_SLOW_MS = 60_000
CALIBRATION = {
    "temperature": 1.5,
    "ece": 0.04,
    "pair_accuracy": 0.86,
    "pair_accuracy_interval": [0.8, 0.9],
    "pairs": 120,
}
_ARRIVAL_S = 240.0
"""Each event is a transaction on the disk; a busy one takes long."""


def installed() -> str | None:
    """Return the Chromium of this machine, if any."""
    return next(filter(None, map(shutil.which, _BROWSERS)), None)


def write_tokens(folder: Path) -> Path:
    """Write one token of each scope; that of scope ``client`` belongs to the client ``detail``."""
    names = {scope: "detail" if scope == "client" else scope for scope in TOKENS}
    path = folder / "tokens.json"
    rows = [{"name": names[scope], "scope": scope, "sha256": hash_token(token)} for scope, token in TOKENS.items()]
    path.write_text(json.dumps(rows))
    return path


def write_checkpoint(folder: Path) -> Path:
    """Write files without content: run control checks names, and headers of weights."""
    folder.mkdir()
    for name in ("config.json", "processor_config.json", "tokenizer.json"):
        (folder / name).touch()
    save_file({}, folder / "model.safetensors")
    return folder


@dataclass
class Site:
    """Run control, and the scripted workers of its runs."""

    processes: Processes
    redis: Redis
    folder: Path
    workers: dict[str, Worker] = field(default_factory=dict)

    @contextlib.asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=self.processes.address, headers=bearer("admin"), timeout=30) as client:
            yield client

    async def begin(self, name: str, steps: int, done: int) -> str:
        """Create a run of ``steps`` steps, the first ``done`` of which are finished."""
        model = self.folder / "checkpoint"
        prompts = self.folder / "prompts.jsonl"
        spec = make_spec(model, prompts, name=name, steps=steps)
        async with self.http() as http:
            run = await create(http, spec)
            self.workers[run] = Worker(self.redis, run, (await claim(http))["attempt"])
        await self.report(run, 1, done)
        return run

    async def resume(self, run: str, step: int) -> None:
        """Hand a run of one attempt back, and continue it from ``step`` in the next attempt."""
        async with self.http() as http:
            beat = {"attempt": 1, "state": "queued"}
            reply = await http.post(f"/v1/runs/{run}/heartbeat", json=beat, headers=bearer("service"))
            reply.raise_for_status()
            held = await claim(http)
            assert held["run"] == run
        self.workers[run] = Worker(self.redis, run, held["attempt"])
        await self.workers[run].report("state", step, {"name": "resumed", "from_step": step})

    async def report(self, run: str, first: int, last: int, *, arrives: bool = True) -> None:
        """Report steps with samples, evaluations and checkpoints; ``arrives``: wait until run control has them."""
        worker = self.workers[run]
        for step in range(first, last + 1):
            await worker.report("samples", step, story.samples(step))
            await worker.report("step", step, story.step_data(step))
            if step % 10 == 0:
                await worker.report("evaluation", step, story.evaluation(step))
                await worker.report("checkpoint", step, {"path": f"/runs/{run}/checkpoints/{step}", "seconds": 1.2})
        await worker.report("weights", last, {"version": last, "seconds": 0.4})
        if arrives:
            async with self.http() as http:
                await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == last, _ARRIVAL_S)

    def address(self, place: str = "/") -> str:
        return f"{self.processes.address}/#{place}"


@contextlib.asynccontextmanager
async def site(folder: Path, redis_url: str) -> AsyncIterator[Site]:
    """Start run control on ``folder``, and a router with the clients of the story."""
    write_checkpoint(folder / "checkpoint")
    write_prompts(folder, 4)
    processes = Processes(folder / "runs", write_tokens(folder), redis_url, folder)
    processes.environment["MOR_RUN_LEASE_S"] = "3600"  # no heartbeats are sent
    processes.environment["MOR_CONTROL_LEASE_S"] = "10"  # a busy machine renews late
    redis = connect(StreamSettings(redis_url=SecretStr(redis_url)))
    endpoints = Endpoints()
    try:
        processes.environment["MOR_ROUTER_URL"] = processes.route()
        await _enrol(endpoints, processes.environment["MOR_ROUTER_URL"])
        processes.serve()
        yield Site(processes, redis, folder)
    finally:
        processes.end()
        endpoints.stop()
        await redis.aclose()


async def _enrol(endpoints: Endpoints, router: str) -> None:
    """Enrol the clients of the story, one of them paused, and one that takes no part in any run."""
    async with httpx.AsyncClient(base_url=router, headers=bearer("admin"), timeout=30) as http:
        for name in (*story.CLIENTS, "newcomer"):
            endpoint = endpoints.endpoint(name)
            endpoint.calibration = CALIBRATION
            body = {"name": name, "url": endpoint.url, "domains": name, "token": TOKEN, "state": "active"}
            (await http.post("/v1/clients", json=body)).raise_for_status()
        (await http.patch("/v1/clients/medical", json={"state": "paused", "reason": "moves house"})).raise_for_status()


@contextlib.asynccontextmanager
async def browser(executable: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(
            executable_path=executable, headless=True, chromium_sandbox=False, args=list(_ARGUMENTS)
        )
        yield opened
        await opened.close()


@contextlib.asynccontextmanager
async def signed_in(context: BrowserContext, site: Site, scope: str) -> AsyncIterator[Page]:
    """Open a page by an address with the token of ``scope``, and wait until the page has looked it up and keeps it.

    Raises:
        AssertionError: an error of the page, or a violation of its content security policy.
    """
    context.set_default_timeout(_SLOW_MS)
    page = await context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security" in message.text else None)
    await page.goto(site.address(f"token={TOKENS[scope]}"))
    await page.get_by_text(f"({scope})").wait_for()
    yield page
    assert not errors, errors
