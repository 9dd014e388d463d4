"""Looks at a whole installation over HTTP and says what is wrong and what to do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import httpx
from mor_core.clients import ClientStatus
from mor_core.service_info import About
from pydantic import BaseModel

from mor_client import checks
from mor_client.checks import Told
from mor_client.config import config_path
from mor_client.errors import ServiceError
from mor_client.findings import Finding, Verdict, failed, ok, skipped, warning
from mor_client.sdk import Mor
from mor_client.transport import Transport

T = TypeVar("T")

_SHOWN_ALERTS = 10


class _RouterStatus(BaseModel):
    clients: tuple[ClientStatus, ...]


def examine(mor: Mor, version: str) -> Iterator[Finding]:
    """One finding after the other, as they are made. ``version``: of this distribution."""
    yield _configuration(mor)
    told: dict[str, Told] = {}
    for transport in (mor.control, mor.router, mor.rollout):
        yield from _service(transport, told)
    for judge in (checks.clocks, checks.token, checks.facts, checks.queue_servers, checks.disks, checks.devices):
        yield from judge(told)
    if told:
        yield from checks.versions(told, version)
    if "control" in told:
        now = told["control"].about.now
        yield from _asked(
            "training processes", lambda: checks.workers(mor.runs.workers(), mor.runs.list(), now, version)
        )
        yield from _asked("alerts", lambda: checks.alerts(mor.alerts.list(acknowledged=False, limit=_SHOWN_ALERTS)))
    if "router" in told:
        yield from _asked("clients", lambda: checks.clients(mor.router.get("/v1/status", _RouterStatus).clients))


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(finding.verdict is not Verdict.failed for finding in findings)


def _configuration(mor: Mor) -> Finding:
    file = config_path()
    source = str(file) if file.is_file() else f"no file {file}; environment and defaults"
    if mor.settings.bearer() is None:
        return failed("configuration", f"{source}; no token", "set MOR_TOKEN_FILE, or token_file in the file")
    if mor.settings.exposed_token_file():
        name = mor.settings.token_file
        return warning("configuration", f"{name} can be read by others", f"chmod 600 {name}")
    return ok("configuration", source)


def _service(transport: Transport, told: dict[str, Told]) -> Iterator[Finding]:
    name = transport.service
    if transport.url is None:
        cure = f"set MOR_{name.upper()}_URL, or {name}_url in the configuration file"
        yield skipped(name, "its address is not known", cure)
        return
    try:
        transport.get("/healthz", dict[str, Any])
    except ServiceError as error:
        yield failed(name, error.detail, error.cure)
        return
    yield _ready(transport)
    begun, clock = time.time(), time.perf_counter()
    try:
        about: About = transport.get("/v1/about", About)
    except ServiceError as error:
        yield failed(f"token at {name}", error.detail, error.cure)
        return
    round_trip_s = time.perf_counter() - clock
    told[name] = Told(about, begun + round_trip_s / 2, round_trip_s)


def _ready(transport: Transport) -> Finding:
    """A service that is alive answers 503 with what is missing while it is not ready."""
    try:
        response = transport.once("GET", "/readyz")
    except ServiceError as error:
        return failed(transport.service, error.detail, error.cure)
    missing: dict[str, str] = response.json().get("missing", {})
    if response.status_code == httpx.codes.OK:
        return ok(transport.service, f"ready at {transport.url}")
    listed = "; ".join(f"{part}: {reason}" for part, reason in missing.items())
    cure = "wait while it starts; else repair the part that is named, its log has more"
    return failed(transport.service, f"alive at {transport.url}, not ready: {listed}", cure)


def _asked(check: str, judge: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Findings about something that has to be asked for first."""
    try:
        yield from list(judge())
    except ServiceError as error:
        yield skipped(check, error.detail, error.cure)
