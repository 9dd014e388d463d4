"""Diagnosis of a whole installation over HTTP: findings, each with a cure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import httpx
from mor_core.clients import ClientStatus
from mor_core.service_info import ServiceInfo
from pydantic import BaseModel

from mor_client import doctor_checks
from mor_client.config import config_path
from mor_client.doctor_checks import ServiceReport
from mor_client.errors import ServiceError
from mor_client.findings import Finding, Verdict, failed, ok, skipped, warning
from mor_client.sdk import Mor
from mor_client.transport import Transport

T = TypeVar("T")

_SHOWN_ALERTS = 10
"""Most open alerts that are listed; 'mor alert list' has all."""


class _RouterStatus(BaseModel):
    clients: tuple[ClientStatus, ...]
    state_problem: str | None = None
    """Null also from a router of a version that does not report it."""


def diagnose(mor: Mor, version: str) -> Iterator[Finding]:
    """Run all checks and yield each finding at once. ``version`` is that of this distribution."""
    yield _configuration(mor)
    reports: dict[str, ServiceReport] = {}
    for transport in (mor.control, mor.router, mor.rollout):
        yield from _service(transport, reports)
    for check_reports in (
        doctor_checks.clocks,
        doctor_checks.token,
        doctor_checks.facts,
        doctor_checks.queue_servers,
        doctor_checks.disks,
        doctor_checks.devices,
    ):
        yield from check_reports(reports)
    if reports:
        yield from doctor_checks.versions(reports, version)
    if "control" in reports:
        now = reports["control"].about.now
        yield from _requested(
            "training processes", lambda: doctor_checks.workers(mor.runs.workers(), mor.runs.list(), now, version)
        )
        yield from _requested(
            "alerts", lambda: doctor_checks.alerts(mor.alerts.list(acknowledged=False, limit=_SHOWN_ALERTS))
        )
    if "router" in reports:
        yield from _requested("clients", lambda: _router_state(mor.router.get("/v1/status", _RouterStatus)))


def _router_state(status: _RouterStatus) -> Iterator[Finding]:
    yield from doctor_checks.router_state(status.state_problem)
    yield from doctor_checks.clients(status.clients)


def healthy(findings: Iterable[Finding]) -> bool:
    """Return whether no check failed; warnings do not count."""
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


def _service(transport: Transport, reports: dict[str, ServiceReport]) -> Iterator[Finding]:
    name = transport.service
    if transport.url is None:
        cure = f"set MOR_{name.upper()}_URL, or {name}_url in the configuration file"
        yield skipped(name, "its address is not configured", cure)
        return
    try:
        transport.get("/healthz", dict[str, Any])
    except ServiceError as error:
        yield failed(name, error.reason, error.cure)
        return
    yield _ready(transport)
    begun, clock = time.time(), time.perf_counter()
    try:
        about: ServiceInfo = transport.get("/v1/about", ServiceInfo)
    except ServiceError as error:
        yield failed(f"token at {name}", error.reason, error.cure)
        return
    round_trip_s = time.perf_counter() - clock
    reports[name] = ServiceReport(about, begun + round_trip_s / 2, round_trip_s)


def _ready(transport: Transport) -> Finding:
    """Check readiness. A live service returns 503 and the missing parts while it is not ready."""
    try:
        response = transport.once("GET", "/readyz")
    except ServiceError as error:
        return failed(transport.service, error.reason, error.cure)
    missing: dict[str, str] = response.json().get("missing", {})
    if response.status_code == httpx.codes.OK:
        return ok(transport.service, f"ready at {transport.url}")
    listed = "; ".join(f"{part}: {reason}" for part, reason in missing.items())
    cure = "wait while it starts; otherwise repair the named part, with the help of the service's log"
    return failed(transport.service, f"alive at {transport.url}, not ready: {listed}", cure)


def _requested(check: str, check_group: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield the findings of a check that makes its own calls, or a skipped one if a call fails."""
    try:
        yield from list(check_group())
    except ServiceError as error:
        yield skipped(check, error.reason, error.cure)
