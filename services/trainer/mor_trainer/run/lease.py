"""Client of run control: claim a run, renew its lease by heartbeats, receive pause and stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

import httpx
import stamina
import structlog
from mor_core.background import in_background
from mor_core.errors import MorError, Unauthorized, Unavailable
from mor_core.failures import describe_failure
from mor_core.fence import Fence
from mor_core.preflight_status import PreflightStatus
from mor_core.run_status import EngineLimits
from mor_core.runs import Claim, ClaimRequest, Desired, Heartbeat, HeartbeatReply, RunSnapshot, RunState
from mor_core.service_addresses import CONTROL, other_service
from pydantic import TypeAdapter, ValidationError

from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog

_TIMEOUT = httpx.Timeout(10.0)
"""Seconds for each phase of a request; well below the lease, so that several attempts fit into it."""
_CALL_S = 15.0
"""Seconds for a request and its whole answer, which may come byte by byte."""
_CONFIRM_S = 0.1
"""Seconds between heartbeats while the end of a run waits for the history; short, because a person may be waiting."""
_PATIENCE_S = 60.0
"""Seconds in which the end of a run is reported again and again: run control may be restarting."""
_REPORT_PAUSE_S = 5.0
"""Longest pause between two attempts to report the end of a run, seconds."""
_MARGIN = 0.1
"""Share of the lease that is left when this worker stops: what it began before then ends before another worker claims
the run."""

_CLAIM = TypeAdapter(Claim)
_REPLY = TypeAdapter(HeartbeatReply)
_RUNS = TypeAdapter(list[RunSnapshot])
_ENGINES = TypeAdapter(list[EngineLimits])
T = TypeVar("T")

log = structlog.get_logger(__name__)


class RunLeaseLost(MorError):
    """Another worker has the run, or run control has not confirmed the lease in time."""


class ControlFull(Unavailable):
    """Run control answers, but its database takes nothing now, such as on a full disk."""


class RunControl:
    """HTTP client of run control, with a token of scope ``service``."""

    def __init__(
        self, settings: WorkerSettings, worker: ClaimRequest, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._worker = worker
        self._runs_etag = ""
        self._models: list[str] = []
        """Checkpoints of the runs under way, as of that ETag."""
        self._http = httpx.AsyncClient(
            base_url=settings.control_url,
            headers={"Authorization": f"Bearer {settings.service_token.get_secret_value()}"},
            timeout=_TIMEOUT,
            verify=settings.control_tls(),
            transport=transport,
            trust_env=False,
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def claim(self) -> Claim | None:
        """Claim the next queued run, if any.

        Raises:
            Unavailable: run control is unreachable, or its answer cannot be read.
            Unauthorized: run control refused the token.
        """
        reply = await self._call("POST", "/v1/runs/claim", self._worker.model_dump(mode="json"))
        if reply.status_code in (401, 403):
            raise Unauthorized(f"run control refused the worker's token: {reply.text[:200]}; set MOR_SERVICE_TOKEN")
        if reply.status_code == 204:
            return None
        claim = _parse(_CLAIM, reply)
        if unknown := _unknown_fields(reply.json()["spec"], claim.spec.model_dump()):
            log.warning("run control is newer; the run is trained without some fields", run=claim.run, fields=unknown)
        return claim

    async def models_under_way(self) -> list[str]:
        """Return the checkpoints of the runs that other workers hold.

        Raises:
            Unavailable: run control is unreachable, or its answer cannot be read.
        """
        reply = await self._call("GET", "/v1/runs", headers={"If-None-Match": self._runs_etag})
        if reply.status_code != 304:
            held = [run for run in _parse(_RUNS, reply) if run.state in (RunState.running, RunState.paused)]
            self._models = [run.model for run in held if run.model is not None]
            self._runs_etag = reply.headers.get("etag", "")
        return self._models

    async def send_heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """Send a heartbeat and return the desired state and the replay requests.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
            Unavailable: run control is unreachable, or its answer cannot be read.
        """
        content = heartbeat.model_dump(mode="json", exclude_none=True)
        reply = await self._call("POST", f"/v1/runs/{run}/heartbeat", content)
        if reply.status_code in (404, 409):
            raise RunLeaseLost(f"run {run}: {reply.text[:300]}")
        return _parse(_REPLY, reply)

    async def engines(self) -> list[EngineLimits]:
        """Return the limits that rollout services have reported.

        Raises:
            Unavailable: run control is unreachable, or its answer cannot be read.
        """
        return _parse(_ENGINES, await self._call("GET", "/v1/engines"))

    async def _call(
        self, method: str, path: str, content: object = None, headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        try:
            async with asyncio.timeout(_CALL_S):
                return await self._http.request(method, path, json=content, headers=headers)
        except (httpx.HTTPError, TimeoutError) as error:
            raise Unavailable(
                f"no answer from run control: {describe_failure(error)}; check MOR_CONTROL_URL"
            ) from error


def _parse(kind: TypeAdapter[T], reply: httpx.Response) -> T:
    """Parse an answer of run control; fields that a newer release added are left out.

    Raises:
        Unavailable: it is another answer than that of run control.
    """
    where = f"{reply.request.url.path} answered {reply.status_code}"
    if (other := other_service(reply.headers, CONTROL)) is not None:
        raise Unavailable(f"{where}: {other}; correct MOR_CONTROL_URL")
    if reply.status_code == 503:
        raise ControlFull(f"{where}: {reply.text[:300]}")
    if reply.status_code != 200:
        raise Unavailable(f"{where}, 200 is wanted; check MOR_CONTROL_URL, MOR_SERVICE_TOKEN and run control's log")
    try:
        return kind.validate_json(reply.content, extra="ignore")
    except ValidationError as error:
        raise Unavailable(
            f"{where} with a body that cannot be read ({describe_failure(error)}); does MOR_CONTROL_URL lead to run "
            "control, of about this worker's version?"
        ) from error


def _unknown_fields(given: Any, known: Any, path: str = "spec") -> list[str]:
    """Return the fields of an object, at any depth, that its parsed value lacks."""
    if isinstance(given, dict) and isinstance(known, dict):
        deeper = [(value, known.get(name), f"{path}.{name}") for name, value in given.items() if name in known]
        found = [f"{path}.{name}" for name in given if name not in known]
    elif isinstance(given, list) and isinstance(known, list | tuple):
        deeper, found = [(*pair, path) for pair in zip(given, known, strict=False)], []
    else:
        return []
    return found + [name for part in deeper for name in _unknown_fields(*part)]


class RunLease:
    """Lease on a run, renewed in the background.

    ``desired`` and ``replay_requests`` are replaced on the event loop's thread, each as a whole. They and ``lost`` may
    be read from any thread.
    """

    def __init__(
        self,
        control: RunControl,
        claim: Claim,
        heartbeat_s: float,
        events: EventLog,
        *,
        claimed_at: float | None = None,
    ) -> None:
        """``claimed_at``: monotonic time at which the claim was sent, from which the lease counts; by default now."""
        self._control = control
        self._claim = claim
        self._heartbeat_s = heartbeat_s
        self._events = events
        self._state = RunState.running
        self._confirmed = time.monotonic() if claimed_at is None else claimed_at
        """Monotonic time at which the last confirmed request was sent; run control's lease began then or later."""
        self._problem = "its heartbeats were not sent"
        """Reason why the lease is not renewed, for the time when it is lost."""
        self._lost: str | None = None
        self.desired: Desired = "run"
        self.replay_requests: dict[int, str] = {}
        """Dropped groups to issue again, by dead letter."""
        self._preflight: PreflightStatus | None = None
        """Progress of the check of the prompts."""
        self._disk_full: str | None = None
        """Write that is delayed until its disk has room."""
        self._told: PreflightStatus | None = None
        """The progress that run control has."""

    @property
    def run(self) -> str:
        return self._claim.run

    @property
    def lost(self) -> str | None:
        """Reason why the lease is lost; ``None`` while it is valid.

        It compares times itself: whatever became of the heartbeats' task and its event loop, a lease ends.
        """
        silent_s = time.monotonic() - self._confirmed
        if self._lost is None and silent_s > (1 - _MARGIN) * self._claim.lease_s:
            self._lost = (
                f"run control has not confirmed the lease of {self._claim.lease_s:g} s for {silent_s:.1f} s: "
                f"{self._problem}"
            )
        return self._lost

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[RunLease]:
        """Send heartbeats while the body runs."""
        async with in_background(self._renew):
            yield self

    async def _renew(self) -> None:
        while self.lost is None:
            try:
                await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
            except RunLeaseLost:
                return
            except Unavailable as error:
                log.warning("the lease is not renewed", run=self._claim.run, error=str(error))
            except Exception as error:  # whatever fails, the next heartbeat may succeed until the lease is over
                log.error("the lease is not renewed", run=self._claim.run, exc_info=error)
            await asyncio.sleep(self._heartbeat_s)

    async def _send(self, heartbeat: Heartbeat) -> None:
        """Send a heartbeat and take over the answer.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
            Unavailable: run control is unreachable, or its answer cannot be read.
        """
        preflight, sent_at = self._preflight, time.monotonic()
        news = None if preflight == self._told else preflight
        heartbeat = heartbeat.model_copy(
            update={"events_lost": self._events.lost, "preflight": news, "disk_full": self._disk_full}
        )
        try:
            reply = await self._control.send_heartbeat(self._claim.run, heartbeat)
        except RunLeaseLost as error:
            self._lost = self._lost or str(error)
            raise
        except Exception as error:
            self._problem = describe_failure(error)
            raise
        self._told = preflight
        self._confirmed = max(self._confirmed, sent_at)
        self.desired = reply.desired
        self.replay_requests = reply.replay
        self._events.seen(reply.events_seen)

    async def wait_for_history(self) -> None:
        """Wait until the history holds every event, so that a reader who sees the end of the run sees all of it.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
            Unavailable: run control is unreachable, or its answer cannot be read.
        """
        await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
        while not self._events.all_seen:
            await asyncio.sleep(_CONFIRM_S)
            await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))

    @property
    def fence(self) -> Fence:
        """Fence of this attempt, for what it writes to the queue server."""
        return Fence(self._claim.run, self._claim.attempt, lambda: self.lost, self.confirm)

    async def confirm(self) -> bool:
        """Return whether run control says now that this attempt holds the run; ``False`` if it does not answer."""
        try:
            await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
        except (MorError, httpx.HTTPError):
            return False
        return True

    async def engines(self) -> list[EngineLimits]:
        """Return the limits that rollout services have reported; none while run control is unreachable."""
        try:
            return await self._control.engines()
        except Unavailable as error:
            log.warning("the limits of the rollout services are unknown", error=str(error))
            return []

    def report_preflight(self, status: PreflightStatus) -> None:
        """Send the progress of the check of the prompts with the next heartbeat. May be called from any thread."""
        self._preflight = status

    def report_disk_full(self, waits: str | None) -> None:
        """Name the delayed write in every heartbeat; ``None``: there is none. May be called from any thread."""
        self._disk_full = waits

    async def report_held(self, state: RunState) -> None:
        """Report that the run is running or paused: at once if possible, else with the next heartbeat.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
        """
        self._state = state
        try:
            await self._send(Heartbeat(attempt=self._claim.attempt, state=state))
        except Unavailable as error:
            log.warning("the next heartbeat reports the state", state=state, error=str(error))

    async def report_end(
        self, state: RunState, error: str | None = None, final: str | None = None, *, patience_s: float = _PATIENCE_S
    ) -> None:
        """Report the end of the attempt, again and again until run control confirms it: it may be restarting.

        While run control has no room to store the report, there is no limit: heartbeats keep the lease meanwhile.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
            Unavailable: run control did not confirm it within ``patience_s``.
        """
        heartbeat = Heartbeat(attempt=self._claim.attempt, state=state, error=error, final=final)
        ends_at = time.monotonic() + patience_s

        def is_temporary(failure: Exception) -> bool:
            nonlocal ends_at
            if isinstance(failure, ControlFull):
                ends_at = time.monotonic() + patience_s
            return isinstance(failure, Unavailable) and time.monotonic() < ends_at

        async for attempt in stamina.retry_context(
            on=is_temporary, attempts=None, timeout=None, wait_max=_REPORT_PAUSE_S
        ):
            with attempt:
                await self._send(heartbeat)
