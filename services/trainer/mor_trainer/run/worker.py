"""Training process: claim queued runs and train them, one after the other."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import random
import signal
import socket
import time
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

import structlog
import torch
from anyio.from_thread import BlockingPortal, start_blocking_portal
from mor_core.errors import MorError, Superseded, Unavailable
from mor_core.failures import describe_failure
from mor_core.runs import Claim, ClaimRequest, RunState
from mor_core.tasks import within

from mor_trainer import __version__
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.model.standby import StandbyModel
from mor_trainer.ranks import Abandoned, Ranks, RanksBroken, device_of, world_size
from mor_trainer.run.interruption import RunInterrupted
from mor_trainer.run.lease import RunControl, RunLease, RunLeaseLost
from mor_trainer.run.loop import TrainingLoop
from mor_trainer.update.learner import PreloadModel, follow_leader

_HISTORY_S, _HURRIED_HISTORY_S = 10.0, 1.0
"""Longest wait for the history to hold every event before the end of a run is reported, seconds; the second while the
process is to end."""
_HURRIED_REPORT_S = 6.0
"""Longest wait until run control has the end of a run while the process is to end, seconds. With
those of ``GroupExchange.close``, a process ends within 30 s while queue server and run control hang."""
_CLAIM_S, _HURRIED_CLAIM_S = 20.0, 3.0
"""Longest wait for the answer to a claim, seconds. The second: see above; a run that it gives is handed back."""
_STANDBY_S = 10.0
"""Seconds between looks at the runs under way by a standby worker: runs last much longer."""
_CHECK_S = 0.05
"""Seconds between checks for a signal while the process waits for a run."""
T = TypeVar("T")

log = structlog.get_logger(__name__)


class TrainingWorker:
    """Worker that claims and trains runs until ``end``; on SIGTERM or Ctrl-C it checkpoints and hands back its run."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._ranks = Ranks(torch.device("cpu"))
        self._standby = StandbyModel()
        self._next_look = 0.0
        """Monotonic time of the next look at the runs under way."""
        self.name = f"{socket.gethostname()}-{os.getpid()}"

    def end(self, signum: int | None = None, frame: FrameType | None = None) -> None:
        """Finish the step, write the checkpoint, hand the run back and return; a model that is loading is left."""
        del frame
        log.info("ending", signal=signum)
        if signum is None:  # from another thread
            self._ranks.ending = True
        else:
            self._ranks.end()

    def install_signals(self) -> None:
        """Call ``end`` on SIGTERM and Ctrl-C; a signal to one of several ranks ends all, after the step."""
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self.end)

    @property
    def ending(self) -> bool:
        """True once the process is to end."""
        return self._ranks.ending

    def work(self, *, once: bool = False) -> bool:
        """Claim and train runs until ``end``; with ``once``, return after the first, and whether it ended well.

        Raises:
            RanksBroken: one of several ranks ended; the launcher must start all of them again.
        """
        torch.set_num_threads(self._settings.torch_threads)
        ending = self._ranks.ending  # a signal that came before the ranks met
        self._ranks = Ranks.join(device_of(self._settings.device))
        self._ranks.ending |= ending
        well = True
        with self._ranks.watched(self._settings.rank_timeout_s):
            if self._ranks.leads:
                well = self._lead(once=once)
            else:
                follow_leader(self._settings, self._ranks)
        self._ranks.leave()
        return well or self._ranks.ending

    def _lead(self, *, once: bool) -> bool:
        well = True
        with start_blocking_portal("asyncio") as portal:
            control = portal.call(self._connect)
            try:
                while not self._ranks.ending:
                    claimed_at = time.monotonic()
                    claim = self._claim(portal, control)
                    if claim is None:
                        self._stand_by(portal, control)
                        self._sleep(self._settings.poll_s * random.uniform(0.75, 1.25))
                        continue
                    well = self._train(portal, control, claim, claimed_at)
                    if once:
                        break
                self._ranks.broadcast(None)
            finally:
                portal.call(control.close)
        return well

    async def _connect(self) -> RunControl:
        request = ClaimRequest(worker=self.name, version=__version__, device=_devices(self._settings.device))
        return RunControl(self._settings, request)

    def _claim(self, portal: BlockingPortal, control: RunControl) -> Claim | None:
        try:
            claim: Claim | None = portal.call(self._within, _CLAIM_S, _HURRIED_CLAIM_S, control.claim)
            return claim
        except (Unavailable, TimeoutError) as error:
            reason = describe_failure(error)
            log.warning("no run can be claimed", address=self._settings.control_url, error=reason)
            return None

    async def _within(self, seconds: float, hurried_s: float, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await within(seconds, call(), hurried=lambda: self._ranks.ending, hurried_s=hurried_s)

    def _stand_by(self, portal: BlockingPortal, control: RunControl) -> None:
        """Hold the model of a run under way ready, if the settings want that."""
        if not self._settings.standby or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _STANDBY_S
        try:
            models: list[str] = portal.call(self._within, _CLAIM_S, _HURRIED_CLAIM_S, control.models_under_way)
        except (Unavailable, TimeoutError) as error:
            log.warning("the runs under way are unknown", error=describe_failure(error))
            return
        if models and self._standby.checkpoint not in models:
            self._ranks.broadcast(PreloadModel(models[0]))
            with contextlib.suppress(Abandoned), self._ranks.abandonable():
                self._standby.prepare(models[0])

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self._ranks.ending and time.monotonic() < deadline:
            time.sleep(_CHECK_S)

    def _train(self, portal: BlockingPortal, control: RunControl, claim: Claim, claimed_at: float) -> bool:
        """Make one attempt at a run and report its end. Return whether it ended as it should.

        Raises:
            RanksBroken: the ranks cannot continue together; the run was handed back, or has failed.
        """
        log.info("claimed", run=claim.run, attempt=claim.attempt, model=claim.spec.model)

        async def prepare() -> tuple[EventLog, RunLease]:
            events = EventLog(claim.run, claim.attempt)
            return events, RunLease(control, claim, self._settings.heartbeat_s, events, claimed_at=claimed_at)

        events, lease = portal.call(prepare)
        with portal.wrap_async_context_manager(lease.renewing()):
            try:
                loop = TrainingLoop(
                    self._settings, claim, portal=portal, lease=lease, events=events,
                    ranks=self._ranks, standby=self._standby,
                )  # fmt: skip
                final = loop.run()
            except (RunLeaseLost, Superseded) as error:
                log.warning("the lease of the run is lost", run=claim.run, reason=str(error))
                return False
            except RunInterrupted as end:
                log.info("handed back" if end.state is RunState.queued else "stopped", run=claim.run)
                return self._report(portal, lease, end.state)
            except RanksBroken as error:
                log.error("the ranks cannot continue together", run=claim.run, reason=str(error), again=error.retryable)
                if error.retryable:
                    self._report(portal, lease, RunState.queued)
                else:
                    self._report(portal, lease, RunState.failed, error=str(error))
                raise
            except MorError as error:
                log.error("the run failed", run=claim.run, error=str(error))
                self._report(portal, lease, RunState.failed, error=str(error))
                return False
            except Exception as error:
                if lease.lost is not None:  # such as a file of the run that the next attempt fenced off
                    log.warning("the lease of the run is lost", run=claim.run, reason=lease.lost, exc_info=error)
                    return False
                log.exception("the run failed", run=claim.run)
                self._report(portal, lease, RunState.failed, error=describe_failure(error))
                return False
            log.info("finished", run=claim.run, final=str(final))
            return self._report(portal, lease, RunState.finished, final=str(final))

    def _report(
        self,
        portal: BlockingPortal,
        lease: RunLease,
        state: RunState,
        *,
        error: str | None = None,
        final: str | None = None,
    ) -> bool:
        """Report the end of a run. Return whether run control has it."""
        report = functools.partial(lease.report_end, state, error, final)
        try:
            with contextlib.suppress(TimeoutError, Unavailable):
                portal.call(self._within, _HISTORY_S, _HURRIED_HISTORY_S, lease.wait_for_history)
            portal.call(self._within, math.inf, _HURRIED_REPORT_S, report)
        except (RunLeaseLost, Unavailable, TimeoutError) as failure:
            reason = describe_failure(failure)
            log.warning("the end of the run could not be reported", run=lease.run, state=state, error=reason)
            return False
        return True


def _devices(setting: str) -> str:
    """Describe the devices of all ranks for the operator, such as ``2 x NVIDIA H200``."""
    name = torch.cuda.get_device_name() if device_of(setting).type == "cuda" else "cpu"
    return f"{world_size()} x {name}" if world_size() > 1 else str(name)
