"""``GET /v1/about``: a service's description of itself, for the diagnosis of an installation.

It has version and clock, the identity of the caller's token, the disks and devices that the service uses, and the queue
server as the service sees it. ``mor doctor`` compares these between services.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import ConfigDict

from mor_core.auth import Principal, Scope, require
from mor_core.disk_full import existing
from mor_core.failures import describe_failure
from mor_core.visibility import hidden_from, visible
from mor_core.wire import Documented

if TYPE_CHECKING:
    from redis.asyncio import Redis

_TIMEOUT_S = 5.0
"""Seconds for the description of the host; a queue server that does not respond must not hold the request."""


class Disk(Documented):
    """Free space on a disk that the service uses."""

    purpose: str
    """Use of the folder, such as ``runs``."""
    path: str
    free_bytes: int
    total_bytes: int


class Device(Documented):
    """Device on which the service computes."""

    name: str
    """``cpu``, or the accelerator's name."""
    free_bytes: int | None = None
    """Free memory; null if unknown."""
    total_bytes: int | None = None


class QueueServer(Documented):
    """Redis or Valkey server as this service sees it. A value that the server's ACL hides is null."""

    server_id: str | None
    """Identity of the server process; equal for services that use the same server."""
    version: str | None
    eviction_policy: str | None
    """Must be ``noeviction``: with another policy a full server drops entries of streams."""
    append_only: bool | None
    """True if the server writes an append-only file, so that the router's store survives a restart."""
    used_bytes: int | None
    max_bytes: int | None
    """Memory limit; null without a limit."""
    round_trip_s: float


class HostInfo(Documented):
    """Description of a service's host."""

    disks: tuple[Disk, ...] = ()
    devices: tuple[Device, ...] = ()
    queue_server: QueueServer | None = None


class ServiceInfo(Documented):
    """Response of ``GET /v1/about``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "service": "MoR trainer",
                    "version": "0.1.0",
                    "now": 1767225600.0,
                    "started_at": 1767220000.0,
                    "caller": {"name": "dashboard", "scope": "viewer"},
                    "facts": {
                        "disks": [{"purpose": "runs", "path": "/runs", "free_bytes": 5e10, "total_bytes": 1e11}],
                        "devices": [],
                        "queue_server": None,
                    },
                    "problem": None,
                }
            ]
        }
    )

    service: str
    version: str
    """Version of the service's distribution; equal for all services of an installation."""
    now: float
    """Clock of the service: Unix time, seconds."""
    started_at: float
    """Start of the service: Unix time, seconds."""
    caller: Principal
    """Holder of the token of this request."""
    facts: Annotated[
        HostInfo | None,
        hidden_from(Scope.client, Scope.enrolment, Scope.scorer, Scope.labeller, Scope.metrics),
    ]
    """Description of the host; for a token of scope admin, service or viewer only."""
    problem: str | None
    """Reason why the description of the host is missing."""


GatherHostInfo = Callable[[], Awaitable[HostInfo]]

router = APIRouter(tags=["health"])


@router.get("/v1/about", summary="Version, clock, caller, disks, devices and queue server")
async def get_service_info(request: Request, caller: Annotated[Principal, Depends(require(*Scope))]) -> ServiceInfo:
    state = request.app.state
    host_info, problem = None, None
    if caller.scope in (Scope.admin, Scope.service, Scope.viewer):
        host_info, problem = await _gather(state.gather_host_info)
    found = ServiceInfo(
        service=request.app.title,
        version=request.app.version,
        now=time.time(),
        started_at=state.started_at,
        caller=caller,
        facts=host_info,
        problem=problem,
    )
    return visible(found, caller.scope, caller.name)


async def _gather(gather: GatherHostInfo | None) -> tuple[HostInfo, None] | tuple[None, str]:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return (await gather() if gather else HostInfo()), None
    except Exception as error:  # any fault of the host is the caller's answer
        return None, describe_failure(error)


def disks(folders: Mapping[str, Path]) -> tuple[Disk, ...]:
    """Measure the disks of ``folders`` (purpose -> path); for a missing folder, that of its nearest parent."""
    found = []
    for purpose, folder in folders.items():
        usage = shutil.disk_usage(existing(folder))
        found.append(Disk(purpose=purpose, path=str(folder.absolute()), free_bytes=usage.free, total_bytes=usage.total))
    return tuple(found)


def cuda_devices() -> tuple[Device, ...]:
    """List the accelerators that torch sees in this process."""
    import torch

    return tuple(
        Device(name=torch.cuda.get_device_name(i), **dict(zip(("free_bytes", "total_bytes"), memory, strict=True)))
        for i in range(torch.cuda.device_count())
        for memory in [torch.cuda.mem_get_info(i)]
    )


async def queue_server(redis: Redis) -> QueueServer:
    """Describe the queue server.

    Raises:
        RedisError: the server cannot be reached.
    """
    from redis.exceptions import NoPermissionError

    begun = time.perf_counter()
    await redis.ping()
    round_trip_s = time.perf_counter() - begun
    try:
        info: dict[str, Any] = await redis.info()
    except NoPermissionError:
        info = {}
    append_only = info.get("aof_enabled")
    return QueueServer(
        server_id=info.get("run_id"),
        version=_text(info.get("valkey_version", info.get("redis_version"))),
        eviction_policy=info.get("maxmemory_policy"),
        append_only=None if append_only is None else bool(append_only),
        used_bytes=info.get("used_memory"),
        max_bytes=info.get("maxmemory") or None,
        round_trip_s=round_trip_s,
    )


def _text(value: object) -> str | None:
    return None if value is None else str(value)
