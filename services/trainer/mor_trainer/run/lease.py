"""Client of run control: claim a run, renew its lease by heartbeats, receive pause and stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import httpx
import stamina
import structlog
from mor_core.errors import MorError, Unauthorized
from mor_core.failures import describe_failure
from mor_core.fence import Fence
from mor_core.preflight_status import PreflightStatus
from mor_core.run_status import EngineLimits
from mor_core.runs import Claim, ClaimRequest, Desired, Heartbeat, HeartbeatReply, RunState
from mor_core.tasks import stop
from pydantic import TypeAdapter, ValidationError

from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog

_TIMEOUT = httpx.Timeout(10.0)
"""Seconds for each phase of a request; well below the lease, so that several attempts fit into it."""
_CONFIRM_S = 0.1
"""Seconds between heartbeats while the end of a run waits for the history; short, because a person may be waiting."""
_REPORT_ATTEMPTS = 20
_REPORT_S = 60.0
"""Seconds in which a change of state is reported again and again: run control may be restarting."""
_CANNOT_STORE = 503
"""Answer of run control whose database takes nothing now."""
_REPORT_PAUSE_S = 5.0
"""Longest pause between two attempts, seconds."""

_ENGINES = TypeAdapter(list[EngineLimits])

log = structlog.get_logger(__name__)


class RunLeaseLost(MorError):
    """Another worker has the run, or run control was unreachable for longer than the lease."""


class RunControl:
    """HTTP client of run control, with a token of scope ``service``."""

    def __init__(
        self, settings: WorkerSettings, worker: ClaimRequest, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._worker = worker
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
            httpx.HTTPError: run control is unreachable.
            Unauthorized: run control refused the token.
        """
        reply = await self._http.post("/v1/runs/claim", json=self._worker.model_dump(mode="json"))
        if reply.status_code in (401, 403):
            raise Unauthorized(f"run control refused the worker's token: {reply.text[:200]}; set MOR_SERVICE_TOKEN")
        reply.raise_for_status()
        return Claim.model_validate_json(reply.content) if reply.status_code == 200 else None

    async def send_heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """Send a heartbeat and return the desired state and the replay requests.

        Raises:
            RunLeaseLost: the run no longer belongs to this attempt.
            httpx.HTTPError: run control is unreachable.
        """
        reply = await self._http.post(
            f"/v1/runs/{run}/heartbeat", json=heartbeat.model_dump(mode="json", exclude_none=True)
        )
        if reply.status_code in (404, 409):
            raise RunLeaseLost(f"run {run}: {reply.text[:300]}")
        reply.raise_for_status()
        return HeartbeatReply.model_validate_json(reply.content)

    async def engines(self) -> list[EngineLimits]:
        """Return the limits that rollout services have reported.

        Raises:
            httpx.HTTPError: run control is unreachable.
        """
        reply = await self._http.get("/v1/engines")
        reply.raise_for_status()
        return _ENGINES.validate_json(reply.content, extra="ignore")


class RunLease:
    """Lease on a run, renewed in the background.

    ``desired``, ``replay_requests`` and ``lost`` are replaced on the event loop's thread, each as a whole, and may be
    read from any thread.
    """

    def __init__(self, control: RunControl, claim: Claim, heartbeat_s: float, events: EventLog) -> None:
        self._control = control
        self._claim = claim
        self._heartbeat_s = heartbeat_s
        self._events = events
        self._state = RunState.running
        self._confirmed = time.monotonic()
        self.desired: Desired = "run"
        self.replay_requests: dict[int, str] = {}
        """Dropped groups to issue again, by dead letter."""
        self._preflight: PreflightStatus | None = None
        """Progress of the check of the prompts."""
        self._disk_full: str | None = None
        """What the run waits to write."""
        self._told: PreflightStatus | None = None
        """The progress that run control has."""
        self.lost: str | None = None
        """Reason why the lease is lost; ``None`` while it is valid."""

    @contextlib.asynccontextmanager
    async def renewing(self) -> AsyncIterator[RunLease]:
        """Send heartbeats while the body runs."""
        task = asyncio.create_task(self._renew(), name=f"heartbeat {self._claim.run}")
        try:
            yield self
        finally:
            await stop([task])

    async def _renew(self) -> None:
        while self.lost is None:
            try:
                await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
            except RunLeaseLost as error:
                self.lost = str(error)
            except httpx.HTTPError as error:
                away = time.monotonic() - self._confirmed
                log.warning("run control is unreachable", seconds=round(away, 1), error=describe_failure(error))
                if away > self._claim.lease_s:
                    self.lost = f"run control was unreachable for {away:.0f} s, longer than the lease"
            await asyncio.sleep(self._heartbeat_s)

    async def _send(self, heartbeat: Heartbeat) -> None:
        preflight = self._preflight
        news = None if preflight == self._told else preflight
        heartbeat = heartbeat.model_copy(
            update={"events_lost": self._events.lost, "preflight": news, "disk_full": self._disk_full}
        )
        reply = await self._control.send_heartbeat(self._claim.run, heartbeat)
        self._told = preflight
        self._confirmed = time.monotonic()
        self.desired = reply.desired
        self.replay_requests = reply.replay
        self._events.seen(reply.events_seen)

    async def wait_for_history(self, all_seen: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the history holds every event, so that a reader who sees the end of the run sees all of it."""
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(timeout_s):
                await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
                while not all_seen():
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
        except (httpx.HTTPError, ValidationError) as error:
            log.warning("the limits of the rollout services are unknown", error=describe_failure(error))
            return []

    def report_preflight(self, status: PreflightStatus) -> None:
        """Send the progress of the check of the prompts with the next heartbeat. May be called from any thread."""
        self._preflight = status

    def report_disk_full(self, waits: str | None) -> None:
        """Send with every heartbeat what the run waits to write; ``None``: it waits no longer. From any thread."""
        self._disk_full = waits

    async def report(
        self,
        state: RunState,
        error: str | None = None,
        final: str | None = None,
        *,
        may_wait: Callable[[], bool] = lambda: False,
    ) -> None:
        """Report a change of state at once, with retries.

        ``may_wait`` returns whether to go on while run control answers that it cannot store the report: its disk is
        full. The heartbeats keep the lease meanwhile.
        """
        if state in (RunState.running, RunState.paused):
            self._state = state  # heartbeats repeat it; an end is reported once, with its error or checkpoint
        heartbeat = Heartbeat(attempt=self._claim.attempt, state=state, error=error, final=final)
        while True:
            try:
                async for attempt in stamina.retry_context(
                    on=httpx.HTTPError, attempts=_REPORT_ATTEMPTS, timeout=_REPORT_S, wait_max=_REPORT_PAUSE_S
                ):
                    with attempt:
                        await self._send(heartbeat)
                return
            except httpx.HTTPStatusError as failure:
                if failure.response.status_code != _CANNOT_STORE or self.lost is not None or not may_wait():
                    raise
