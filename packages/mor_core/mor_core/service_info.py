"""``GET /v1/about``: what an operator must know of a service to judge an installation, told by the service itself.

Version and clock, who the caller's token makes it, the disks and devices that the service uses, and the queue server as
it sees it. ``mor doctor`` compares these between services.
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
from mor_core.wire import Documented

if TYPE_CHECKING:
    from redis.asyncio import Redis

_TIMEOUT_S = 5.0


class Disk(Documented):
    purpose: str
    """What the service keeps there."""
    path: str
    free_bytes: int
    total_bytes: int


class Device(Documented):
    name: str
    """``cpu``, or the accelerator's name."""
    free_bytes: int | None = None
    """Free memory; null where it is not known."""
    total_bytes: int | None = None


class QueueServer(Documented):
    """The Redis or Valkey server as this service sees it. What its ACL hides is null."""

    server_id: str | None
    """Identity of the server process: the same for services that use the same one."""
    version: str | None
    eviction_policy: str | None
    """``noeviction`` is wanted: with another, a full server drops entries of streams."""
    append_only: bool | None
    """Whether it writes an append-only file, so that the router's store survives a restart."""
    used_bytes: int | None
    max_bytes: int | None
    """Null without a limit."""
    round_trip_s: float


class Facts(Documented):
    """What a service tells of the machine it runs on."""

    disks: tuple[Disk, ...] = ()
    devices: tuple[Device, ...] = ()
    queue_server: QueueServer | None = None


class About(Documented):
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
    """Of the service's distribution; all services of an installation have the same."""
    now: float
    """The service's clock, Unix time in seconds."""
    started_at: float
    """Unix time, seconds."""
    caller: Principal
    """Who the token of this request belongs to."""
    facts: Facts | None
    """Null for a client's token."""
    problem: str | None
    """Why there are no facts."""


GatherFacts = Callable[[], Awaitable[Facts]]

router = APIRouter(tags=["health"])


@router.get("/v1/about", summary="Version, clock, caller, disks, devices and queue server")
async def about(
    request: Request, caller: Annotated[Principal, Depends(require(Scope.viewer, Scope.service, Scope.client))]
) -> About:
    state = request.app.state
    facts, problem = None, None
    if caller.scope is not Scope.client:
        facts, problem = await _gather(state.gather_facts)
    return About(
        service=request.app.title,
        version=request.app.version,
        now=time.time(),
        started_at=state.started_at,
        caller=caller,
        facts=facts,
        problem=problem,
    )


async def _gather(gather: GatherFacts | None) -> tuple[Facts, None] | tuple[None, str]:
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            return (await gather() if gather else Facts()), None
    except Exception as error:  # whatever is wrong with the machine is what the caller wants to know
        return None, f"{type(error).__name__}: {error}"


def disks(folders: Mapping[str, Path]) -> tuple[Disk, ...]:
    """Room on the disks of ``folders`` (purpose -> path); a folder that is not there yet counts as its parent."""
    found = []
    for purpose, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        usage = shutil.disk_usage(there)
        found.append(Disk(purpose=purpose, path=str(folder.absolute()), free_bytes=usage.free, total_bytes=usage.total))
    return tuple(found)


def cuda_devices() -> tuple[Device, ...]:
    """The accelerators that torch sees in this process."""
    import torch

    return tuple(
        Device(name=torch.cuda.get_device_name(i), **dict(zip(("free_bytes", "total_bytes"), memory, strict=True)))
        for i in range(torch.cuda.device_count())
        for memory in [torch.cuda.mem_get_info(i)]
    )


async def queue_server(redis: Redis) -> QueueServer:
    """What the queue server tells of itself.

    Raises:
        RedisError: it cannot be reached.
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
