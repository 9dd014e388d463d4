"""Checks of ``mor doctor`` on reports of services; pure functions without calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from mor_core.auth import Scope
from mor_core.clients import ClientStatus
from mor_core.run_alerts import Alert
from mor_core.run_status import WorkerStatus
from mor_core.runs import RunSnapshot, RunState
from mor_core.service_info import QueueServer, ServiceInfo

from mor_client.findings import Finding, failed, ok, warning

_SKEW_S = 2.0
"""Tolerated clock difference in seconds: people hardly notice it in logs and charts."""
_BAD_SKEW_S = 30.0
"""Clock difference that is a failure, in seconds: that of the alert MorClockSkew."""
_SLOW_QUEUE_S = 0.05
"""Seconds of a PING above which the queue server slows every step down."""
_FULL_SHARE = 0.8
"""Fraction of the queue server's memory above which it may soon refuse entries."""
_LITTLE_SHARE, _LITTLE_BYTES = 0.1, 10 << 30
"""Free space below both of which a disk gets a warning: fraction of the disk, and bytes."""
_NO_BYTES = 1 << 30
"""Free bytes below which a disk cannot take another checkpoint."""
_SILENT_S = 60.0
"""Seconds without a call after which a worker counts as gone; workers call run control every 2 s by default."""


@dataclass(frozen=True)
class ServiceReport:
    """Self-description of a service, with its time of receipt by the local clock."""

    about: ServiceInfo
    received_at: float
    """Unix time at the middle of the request, in seconds."""
    round_trip_s: float


def versions(reports: Mapping[str, ServiceReport], own: str) -> Iterator[Finding]:
    """Check that all distributions of the installation have the same version."""
    found = {name: service.about.version for name, service in reports.items()} | {"this command": own}
    listed = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(set(found.values())) == 1:
        yield ok("versions", f"all {own}")
    else:
        yield failed(
            "versions", listed, "install the same version everywhere: services first, then workers and this command"
        )


def clocks(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    """Check that clocks agree to seconds, so that times of different services fit together."""
    for name, service in reports.items():
        skew = service.about.now - service.received_at
        uncertainty = service.round_trip_s / 2
        detail = f"{skew:+.2f} s from the local clock, ± {uncertainty:.2f} s"
        if abs(skew) <= _SKEW_S + uncertainty:
            yield ok(f"clock of {name}", detail)
            continue
        finding = failed if abs(skew) > _BAD_SKEW_S else warning
        yield finding(f"clock of {name}", detail, "run NTP (chrony, systemd-timesyncd) on both machines")


def token(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    """Check the scope of the token at each service."""
    for name, service in reports.items():
        caller = service.about.caller
        detail = f"token {caller.name!r} has scope {caller.scope}"
        if caller.scope is Scope.admin:
            yield ok(f"token at {name}", detail)
        elif caller.scope in (Scope.viewer, Scope.service):
            cure = "use a token of scope admin to create, pause, enrol or fit; this one can only read"
            yield warning(f"token at {name}", detail, cure)
        else:
            cure = "use a token of scope admin, or viewer to read; this one reads none of what follows"
            yield warning(f"token at {name}", detail, cure)


def queue_servers(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    """Check the queue server as each service reports it; once if all report the same one."""
    seen = {name: facts.queue_server for name, service in reports.items() if (facts := service.about.facts) is not None}
    known = {name: server for name, server in seen.items() if server is not None}
    identities = {server.server_id for server in known.values() if server.server_id is not None}
    if len(identities) > 1:
        listed = ", ".join(f"{name}: {str(server.server_id)[:8]}" for name, server in known.items())
        yield failed("queue server", f"services use different servers ({listed})", "set the same MOR_REDIS_URL for all")
    for name, server in list(known.items())[: 1 if len(identities) <= 1 else None]:
        yield from _queue_server(f"queue server (by {name})", server)


def _queue_server(check: str, server: QueueServer) -> Iterator[Finding]:
    problems: list[tuple[str, str]] = []
    if server.eviction_policy not in (None, "noeviction"):
        problems.append(
            (f"policy {server.eviction_policy} drops entries when full", "CONFIG SET maxmemory-policy noeviction")
        )
    if server.append_only is False:
        problems.append(
            ("no append-only file: clients and objectives are lost in a crash", "CONFIG SET appendonly yes")
        )
    if server.max_bytes and server.used_bytes and server.used_bytes > _FULL_SHARE * server.max_bytes:
        problems.append(
            (
                f"{server.used_bytes / server.max_bytes:.0%} of its memory is used",
                "raise maxmemory, or set MOR_BLOB_DIR",
            )
        )
    if server.round_trip_s > _SLOW_QUEUE_S:
        problems.append(
            (f"a PING takes {1000 * server.round_trip_s:.0f} ms", "move it closer, or give it its own core")
        )
    for detail, cure in problems:
        yield warning(check, detail, cure)
    if not problems:
        yield ok(check, f"version {server.version or 'unknown'}, PING in {1000 * server.round_trip_s:.1f} ms")


def disks(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    for name, service in reports.items():
        for disk in service.about.facts.disks if service.about.facts else ():
            check = f"disk of {name} for {disk.purpose}"
            detail = f"{disk.free_bytes / 2**30:.1f} of {disk.total_bytes / 2**30:.1f} GiB free at {disk.path}"
            cure = "free space, or reduce keep_checkpoints and keep_weights of the runs"
            if disk.free_bytes < _NO_BYTES:
                yield failed(check, detail, cure)
            elif disk.free_bytes < min(_LITTLE_BYTES, _LITTLE_SHARE * disk.total_bytes):
                yield warning(check, detail, cure)
            else:
                yield ok(check, detail)


def devices(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    """List the accelerators of services with a model."""
    for name, service in reports.items():
        for device in service.about.facts.devices if service.about.facts else ():
            if device.free_bytes is None or device.total_bytes is None:
                yield ok(f"device of {name}", device.name)
                continue
            detail = f"{device.name}, {device.free_bytes / 2**30:.1f} of {device.total_bytes / 2**30:.1f} GiB free"
            yield ok(f"device of {name}", detail)


def facts(reports: Mapping[str, ServiceReport]) -> Iterator[Finding]:
    """Report services that could not describe their host."""
    for name, service in reports.items():
        if service.about.problem is not None:
            cure = "repair the named part; for the queue server check MOR_REDIS_URL of the service"
            yield failed(f"facts of {name}", service.about.problem, cure)


def workers(found: Sequence[WorkerStatus], runs: Iterable[RunSnapshot], now: float, own: str) -> Iterator[Finding]:
    """Check that a training process is alive and of version ``own``; ``now`` is Unix time by run control's clock."""
    alive = [worker for worker in found if worker.state != "gone" and now - worker.seen_at < _SILENT_S]
    queued = [run.id for run in runs if run.state is RunState.queued]
    if not alive:
        finding = failed if queued else warning
        waiting = f"; {len(queued)} runs are queued" if queued else ""
        yield finding(
            "training processes", f"none requested a run within a minute{waiting}", "start one with 'mor-trainer work'"
        )
    for worker in alive:
        detail = f"on {worker.device or 'an unknown device'}, {worker.run or 'waiting for a run'}"
        if worker.version not in (None, own):
            yield failed(f"worker {worker.name}", f"{detail}, version {worker.version}", f"install {own} there")
        else:
            yield ok(f"worker {worker.name}", detail)


def router_state(problem: str | None) -> Iterator[Finding]:
    """Report what is wrong with the router's state."""
    if problem is not None:
        yield failed("router's state", problem, "see MorRouterState in docs/runbooks.md")


def clients(found: Sequence[ClientStatus]) -> Iterator[Finding]:
    if not found:
        yield warning("clients", "none is enrolled", "run 'mor client enrol', or 'mor-reward register' at the client")
    elif all(status.client.state != "active" for status in found):
        yield warning(
            "clients", "none is active, so no group gets a reward", "fit an objective, or 'mor client resume NAME'"
        )
    for status in found:
        name, state = status.client.name, status.client.state
        check = f"client {name}"
        if state == "quarantined":
            yield warning(
                check, f"quarantined: {status.client.reason}", f"inspect its influence with 'mor client show {name}'"
            )
        elif status.circuit != "closed" or status.last_error is not None:
            detail = f"{state}, circuit {status.circuit}: {status.last_error}"
            yield warning(
                check, detail, "do what the error says, or have the client check its reward service; calls go on"
            )
        else:
            yield ok(check, state)


def alerts(found: Sequence[Alert]) -> Iterator[Finding]:
    """Report the alerts that are not acknowledged."""
    if not found:
        yield ok("alerts", "none is open")
    for alert in found:
        yield warning(
            f"alert {alert.id}", f"{alert.run}: {alert.name}, {alert.reason}", f"mor alert acknowledge {alert.id}"
        )
