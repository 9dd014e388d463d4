"""Exchange of one run's groups with the other stages: issue, collect, issue again.

::

    TrainingLoop, Publisher ──portal──▶ GroupExchange
    GroupExchange ─▶ ExchangeTasks                background tasks, through outages of the queue server
    GroupExchange ─▶ Ledger, Evaluations          bookkeeping of training and evaluation groups
    GroupExchange ─▶ DispatchQueue ─▶ PromptRecords; stream "prompts", blobs
    GroupExchange ─▶ GroupReceiver ◀─ streams "rewards" and "dead"
    GroupExchange ─▶ Liveness ─▶ FlushDetector, GroupStreams
    GroupExchange, GroupReceiver, Liveness ─▶ GroupRecovery      lost and bad groups; alerts
    GroupExchange ─▶ WaitAlert                    alerts of what groups wait for
    GroupExchange ─▶ GroupTraces, EventLog        spans; results

The training loop requests groups and waits with a limit. Everything else happens here in the background, recovery from
outages of the queue server included: every group can be issued again from the run's prompts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from mor_core.blobs import Blobs
from mor_core.errors import Superseded
from mor_core.evaluated_steps import EvaluatedStep
from mor_core.fence import Fence
from mor_core.run_announcements import announce
from mor_core.runs import RunSpec
from mor_core.streams import Streams, connect
from mor_core.tasks import within
from mor_core.wire import WeightsRef
from redis.exceptions import RedisError

from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.dispatch_queue import DispatchQueue
from mor_trainer.groups.evaluation import Evaluations, EvaluationState
from mor_trainer.groups.exchange_tasks import ExchangeTasks
from mor_trainer.groups.group_receiver import GroupReceiver
from mor_trainer.groups.group_streams import GroupStreams
from mor_trainer.groups.ledger import GroupCounts, Ledger, LedgerState
from mor_trainer.groups.liveness import Liveness
from mor_trainer.groups.pinned_scoring import PinnedScoring
from mor_trainer.groups.prompt_order import PromptOrder
from mor_trainer.groups.prompt_record import PromptRecords
from mor_trainer.groups.recovery import GroupRecovery
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.groups.unusable_versions import RepublishRequest
from mor_trainer.groups.wait_alert import WaitAlert, listed
from mor_trainer.prompts.source_prompts import SourcePrompts

_WATCH_S = 1.0
"""Seconds between checks for a flushed queue server and overdue groups; short compared with ``group_timeout_s``."""
_WITHDRAW_S, _HURRIED_WITHDRAW_S = 10.0, 2.0
"""Seconds for the clean-up at the end; without it the announcement expires and the next attempt cleans up. The second:
while the process is to end."""
_DRAIN_S, _HURRIED_DRAIN_S = 20.0, 4.0
"""Seconds for the last events to reach the queue server, so that a restart of it loses none. The second: see above."""

log = structlog.get_logger(__name__)


class GroupExchange:
    """The exchange of one run's groups.

    Every method is a coroutine that runs on the event loop. The training and publishing threads call them through the
    portal and read no attribute but ``traces``, whose methods may be called from any thread.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        run: str,
        spec: RunSpec,
        *,
        prompts: SourcePrompts,
        order: PromptOrder,
        events: EventLog,
        fence: Fence,
        left_out: int = 0,
        pinned: PinnedScoring | None = None,
    ) -> None:
        """Open the exchange.

        ``left_out``: rows that were found bad before the first step and are not among ``prompts``. ``pinned``: scoring
        conditions of a deterministic run.
        """
        self._settings = settings
        self._run = run
        self._fence = fence
        self._spec = spec
        self._prompts = prompts
        self._events = events
        self._redis = connect(settings)
        self._streams = Streams(self._redis, run, settings.stream_bound, fence)
        self._blobs = Blobs(self._redis, run, settings.blob_dir, fence)
        self._weights: WeightsRef | None = None
        self._step = 0
        """Finished steps."""
        self._in_step = 0
        """Groups that the step in progress has taken."""
        self._group_streams = GroupStreams(self._redis, fence)
        self._published = asyncio.Event()
        self._arrived = asyncio.Event()
        self._ledger: Ledger[ScoredGroup] = Ledger(
            run=run,
            order=order,
            max_staleness=spec.max_staleness,
            max_attempts=settings.group_attempts,
        )
        self.traces = GroupTraces()
        self._evaluations = Evaluations(run, settings.group_attempts, self.traces, self._report_evaluation)
        self._dispatch_queue = DispatchQueue(self._streams, self._blobs)
        self._recovery = GroupRecovery(
            run,
            spec,
            prompts,
            settings.group_timeout_s,
            left_out=left_out,
            ledger=self._ledger,
            evaluations=self._evaluations,
            dispatch_queue=self._dispatch_queue,
            group_streams=self._group_streams,
            traces=self.traces,
            events=events,
            step=lambda: self._step,
            arrived=self._arrived,
            last_arrival=lambda: self._receiver.last_arrival,
        )
        self._prompt_records = PromptRecords(
            fence,
            spec,
            prompts,
            ledger=self._ledger,
            evaluations=self._evaluations,
            traces=self.traces,
            weights=lambda: self._weights,
            unread=self._recovery.retry_unread,
        )
        announcing = functools.partial(announce, self._redis, run, spec.model, settings.service_token, fence)
        self._liveness = Liveness(self._redis, fence, announcing, self._group_streams, self._recovery.reissue_all)
        self._tasks = ExchangeTasks(run, fence, self._liveness.reclaim, self._arrived.set)
        self._receiver = GroupReceiver(
            spec,
            settings.lease_s,
            streams=self._streams,
            blobs=self._blobs,
            ledger=self._ledger,
            evaluations=self._evaluations,
            recovery=self._recovery,
            dispatch_queue=self._dispatch_queue,
            arrived=self._arrived,
            pinned=pinned,
        )
        self._wait_alert = WaitAlert(self._redis, run, lambda: self._recovery.missing, self._emit_alert)
        self._issuing = True

    # --- start and end ------------------------------------------------------------------------------------------

    async def start(self, step: int, state: LedgerState | None, *, issuing: bool) -> None:
        """Start the background tasks after ``step`` steps.

        With ``state``, all groups that were under way at the checkpoint are issued again. ``issuing``: see
        ``set_issuing``.
        """
        self._step, self._issuing = step, issuing
        if state is not None:
            await self.adopt(state)
        self._tasks.start(
            {
                "announce": self._liveness.announce,
                "send": self._send_prompts,
                "rewards": self._receiver.read_rewards,
                "dead": self._receiver.read_dead,
                "watch": self._watch,
                "events": lambda: self._events.send(self._streams),
            }
        )

    async def close(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Stop the tasks, withdraw the run from the stages and release its blobs.

        After the lease is lost, nothing is withdrawn or released: it is another attempt's. Only the entries that this
        attempt read and did not settle are handed back. ``hurried``: whether the process is to end, so that a queue
        server that hangs must not keep it.
        """
        self._wait_alert.end("the attempt at the run ended")
        if self._fence.lost() is None:
            with contextlib.suppress(TimeoutError):
                await within(_DRAIN_S, self._events.drain(), hurried=hurried, hurried_s=_HURRIED_DRAIN_S)
        await self._tasks.stop()
        self.traces.close()
        with contextlib.suppress(RedisError, OSError, Superseded):  # the folder of blobs may fail too, or time run out
            await within(_WITHDRAW_S, self._withdraw(), hurried=hurried, hurried_s=_HURRIED_WITHDRAW_S)
        await self._redis.aclose()

    async def _withdraw(self) -> None:
        await self._liveness.withdraw()
        for group_id in [*self._ledger.outstanding, *self._evaluations.outstanding]:
            await self._blobs.release(group_id)

    # --- versions and issue -------------------------------------------------------------------------------------

    async def advance(self, step: int, version: int) -> None:
        """Record that ``step`` steps are finished and the policy is ``version``, which is about to be published."""
        self._step, self._in_step = step, 0
        self._ledger.advance_version(version)

    async def renumber(self, version: int) -> None:
        """Record that the policy is about to be published again, as ``version``."""
        self._ledger.renumber_version(version)

    async def republish_request(self) -> RepublishRequest | None:
        """Return the request to publish the policy again, if an engine cannot use its version.

        Raises:
            Unavailable: it was published several times, and no engine can use it.
        """
        return self._recovery.unusable.due()

    async def announce_version(self, version: int) -> None:
        """Make prompts name ``version`` from now on; with staleness, issue groups while a step is computed."""
        self._weights = WeightsRef(version=version)
        self._published.set()
        self._recovery.unusable.published(version)
        if self._spec.max_staleness:
            self._issue()

    async def set_issuing(self, issuing: bool) -> None:
        """Draw new groups or not; none are drawn while a replayed step is computed again."""
        self._issuing = issuing

    async def top_up(self, in_step: int = 0) -> list[int]:
        """Issue as many groups as staleness allows; return the prompt indices of all that wait to be trained on.

        ``in_step``: groups that the step in progress keeps, which need no replacement.
        """
        self._in_step = in_step
        self._issue()
        numbers = [*(issue.number for issue in self._ledger.outstanding.values()), *self._ledger.ready]
        return [self._ledger.prompt_of(number) for number in numbers]

    def _issue(self) -> None:
        """Issue new groups, to the newest version only, so that none is older than necessary when it is trained on."""
        if not self._issuing or self._weights is None or self._weights.version != self._ledger.versions[-1]:
            return
        room = self._ledger.room(self._spec.groups_per_step, self._in_step, self._spec.steps - self._step)
        issues = self._ledger.issue(room, self._recovery.deadline())
        self._dispatch_queue.add(*(self._ledger.group_id(issue.number) for issue in issues))

    # --- evaluation and replay requests -------------------------------------------------------------------------

    async def begin_evaluation(self, step: int, version: int, prompts: SourcePrompts) -> None:
        """Issue the evaluation prompts; a round that is still going on is reported with what has arrived."""
        self._evaluations.begin(step, version, prompts, self._recovery.deadline())
        self._dispatch_queue.add(*self._evaluations.outstanding)

    async def resume_evaluation(self, state: EvaluationState, prompts: SourcePrompts) -> None:
        """Continue the evaluation of a checkpoint."""
        self._evaluations.restore(state, prompts, self._recovery.deadline())
        self._dispatch_queue.add(*self._evaluations.outstanding)

    async def evaluation_state(self) -> EvaluationState | None:
        """Return the state of the evaluation for a checkpoint; ``None`` where none is going on."""
        return self._evaluations.state()

    async def evaluated(self) -> list[EvaluatedStep]:
        """Return the finished evaluations, oldest first."""
        return list(self._evaluations.evaluated)

    async def restore_evaluated(self, evaluated: list[EvaluatedStep]) -> None:
        """Continue the list of finished evaluations of a checkpoint."""
        self._evaluations.evaluated = list(evaluated)

    async def evaluating(self) -> bool:
        """Return whether an evaluation is still going on."""
        return bool(self._evaluations.outstanding)

    def _report_evaluation(self, step: int, summary: dict[str, Any]) -> None:
        self._events.add("evaluation", step, summary)

    async def replay(self, requested: Mapping[int, str]) -> None:
        """Issue the dropped groups again that an operator requests, by dead letter.

        A request that is still there some time after its answer is a new one.
        """
        self._recovery.replay(requested)

    # --- groups of a step ---------------------------------------------------------------------------------------

    async def take(self, count: int, timeout_s: float) -> list[ScoredGroup]:
        """Take ``count`` scored groups in the order of their numbers, or none within ``timeout_s``.

        Raises:
            PromptsFailed: more prompts are bad than the run allows.
            Exception: the error that ended a background task.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if (failure := self._tasks.failure or self._recovery.failure) is not None:
                raise failure
            taken, stale = self._ledger.take(count, self._recovery.deadline())
            self._dispatch_queue.add(*(self._ledger.group_id(issue.number) for issue in stale))
            if taken:
                self._in_step += len(taken)
                return [group.model_copy(update={"staleness": staleness}) for _, group, staleness in taken]
            self._arrived.clear()
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    await self._arrived.wait()
            except TimeoutError:
                return []

    async def put_back(self, taken: Sequence[ScoredGroup]) -> None:
        """Make groups ready again that were taken and not trained on."""
        for group in taken:
            rollout = group.record.rollout
            self._ledger.put_back(group.number, group, rollout.weights_version, rollout.prompt.attempt)

    async def skip(self, count: int) -> None:
        """Count taken groups as skipped: they are replaced because their rewards carry no signal."""
        self._ledger.skip_taken(count)

    async def reject(self, group: ScoredGroup, reason: str) -> None:
        """Drop a taken group that must not be trained on, with an alert that carries its record as a dead letter."""
        self._recovery.reject(group, reason)

    # --- state --------------------------------------------------------------------------------------------------

    async def state(self) -> LedgerState:
        """Return the ledger's state for a checkpoint."""
        return self._ledger.state()

    async def adopt(self, state: LedgerState) -> None:
        """Replace the ledger's state by that of a checkpoint or replayed step, and issue its outstanding groups."""
        self._ledger.restore(state, self._recovery.deadline())
        self._dispatch_queue.add(*self._ledger.outstanding)

    async def counts(self) -> GroupCounts:
        """Return the totals of the run."""
        return self._ledger.counts(self._receiver.duplicates)

    async def idle_s(self) -> float:
        """Return the seconds since a group last came back."""
        return time.monotonic() - self._receiver.last_arrival

    async def resume_waiting(self) -> None:
        """Count the wait for groups from now on: the run was paused."""
        self._receiver.last_arrival = time.monotonic()

    async def no_room(self) -> str | None:
        """Return why the queue server or the folder of blobs takes nothing at present, with a remedy."""
        return self._tasks.no_room()

    async def describe_stall(self) -> str:
        """Describe what groups wait for."""
        depths = await self._group_streams.depths()
        missing = self._wait_alert.missing
        if missing:
            return f"groups wait for {listed(missing)}; entries in the streams: {depths}"
        return (
            f"entries in the streams: {depths}. Entries in 'prompts': is the rollout service running? "
            "In 'rollouts': is the router, with clients?"
        )

    def _emit_alert(self, data: dict[str, Any]) -> None:
        self._events.add("alert", self._step, data)

    # --- sending ------------------------------------------------------------------------------------------------

    async def _send_prompts(self) -> None:
        await self._liveness.cleared.wait()
        await self._published.wait()
        await self._dispatch_queue.send(self._prompt_records.find)

    # --- watching -----------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Issue again the groups that are overdue, and all groups when the queue server lost its content."""
        while True:
            await self._liveness.check()
            await self._recovery.reissue_overdue()
            await self._receiver.release_given_up()
            self._recovery.unusable.release()
            await self._wait_alert.check(await self.idle_s())
            await asyncio.sleep(_WATCH_S)
