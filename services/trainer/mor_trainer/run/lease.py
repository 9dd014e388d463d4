"""A worker's side of run control: claims a run, keeps it by heartbeats, hears pause and stop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import httpx
import stamina
import structlog
from mor_core.errors import MorError, Unauthorized
from mor_core.runs import Claim, ClaimRequest, Desired, Heartbeat, HeartbeatReply, RunState
from mor_core.tasks import stop

from mor_trainer.config import WorkerSettings

_TIMEOUT = httpx.Timeout(10.0)
_SETTLE_S = 0.1

log = structlog.get_logger(__name__)


class HoldLost(MorError):
    """Another worker has the run, or run control was out of reach for longer than the lease."""


class RunControl:
    """HTTP client of run control, scope ``service``."""

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
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def claim(self) -> Claim | None:
        """The next queued run, if any.

        Raises:
            httpx.HTTPError: run control is out of reach.
            Unauthorized: it does not take our token.
        """
        reply = await self._http.post("/v1/runs/claim", json=self._worker.model_dump(mode="json"))
        if reply.status_code in (401, 403):
            raise Unauthorized(f"run control refused the worker's token: {reply.text[:200]}; set MOR_SERVICE_TOKEN")
        reply.raise_for_status()
        return Claim.model_validate_json(reply.content) if reply.status_code == 200 else None

    async def beat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        """Report, and hear what is wanted.

        Raises:
            HoldLost: the run is not ours any more.
            httpx.HTTPError: run control is out of reach.
        """
        reply = await self._http.post(f"/v1/runs/{run}/heartbeat", json=heartbeat.model_dump(mode="json"))
        if reply.status_code in (404, 409):
            raise HoldLost(f"run {run}: {reply.text[:300]}")
        reply.raise_for_status()
        return HeartbeatReply.model_validate_json(reply.content)


class Hold:
    """The hold on one run, renewed in the background."""

    def __init__(self, control: RunControl, claim: Claim, heartbeat_s: float, seen: Callable[[int], None]) -> None:
        self._control = control
        self._claim = claim
        self._heartbeat_s = heartbeat_s
        self._seen = seen
        self._state = RunState.running
        self._confirmed = time.monotonic()
        self.desired: Desired = "run"
        self.replay: dict[int, str] = {}
        """Dropped groups to issue again, by dead letter."""
        self.lost: str | None = None

    @contextlib.asynccontextmanager
    async def kept(self) -> AsyncIterator[Hold]:
        """Heartbeats while the body runs."""
        task = asyncio.create_task(self._beat(), name=f"heartbeat {self._claim.run}")
        try:
            yield self
        finally:
            await stop([task])

    async def _beat(self) -> None:
        while self.lost is None:
            try:
                await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
            except HoldLost as error:
                self.lost = str(error)
            except httpx.HTTPError as error:
                away = time.monotonic() - self._confirmed
                log.warning("run control is out of reach", seconds=round(away, 1), error=str(error))
                if away > self._claim.lease_s:
                    self.lost = f"run control was out of reach for {away:.0f} s, longer than the lease"
            await asyncio.sleep(self._heartbeat_s)

    async def _send(self, heartbeat: Heartbeat) -> None:
        reply = await self._control.beat(self._claim.run, heartbeat)
        self._confirmed = time.monotonic()
        self.desired = reply.desired
        self.replay = reply.replay
        self._seen(reply.events_seen)

    async def settle(self, all_seen: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the history has every event, so that whoever sees the end of the run sees all of it."""
        with contextlib.suppress(TimeoutError, httpx.HTTPError):
            async with asyncio.timeout(timeout_s):
                await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))
                while not all_seen():
                    await asyncio.sleep(_SETTLE_S)
                    await self._send(Heartbeat(attempt=self._claim.attempt, state=self._state))

    async def report(self, state: RunState, error: str | None = None, final: str | None = None) -> None:
        """Tell a change of state at once, with retries."""
        if state in (RunState.running, RunState.paused):
            self._state = state  # heartbeats repeat it; an end is told once, with its error or its final checkpoint
        heartbeat = Heartbeat(attempt=self._claim.attempt, state=state, error=error, final=final)
        async for attempt in stamina.retry_context(on=httpx.HTTPError, attempts=20, timeout=60.0, wait_max=5.0):
            with attempt:
                await self._send(heartbeat)
