"""Training loop of one run: groups in, updates, versions out, until the last step.

::

    TrainingWorker ─▶ TrainingLoop ─▶ RunLease           pause, stop, replay requests
    TrainingLoop ─▶ Learner                              update, save and gather, on all ranks
    TrainingLoop ──portal──▶ GroupExchange               issue and take groups
    TrainingLoop ─▶ BackgroundPublication ─▶ Publisher ──portal──▶ GroupExchange
    TrainingLoop ─▶ ReplayLog; StepReporter ──portal──▶ EventLog
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog
from anyio.from_thread import BlockingPortal
from mor_core import atomic
from mor_core.errors import DataFileError, Invalid, Unavailable
from mor_core.runs import Claim
from mor_core.step_metrics import PhaseSeconds
from mor_core.stored import StoredEntries

from mor_trainer.algorithm.dynamic_sampling import has_signal, max_replacements
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.exchange import GroupExchange
from mor_trainer.groups.prompt_order import PromptOrder
from mor_trainer.groups.replay_log import ReplayConditions, ReplayedStep, ReplayLog
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.prompt_processor import PromptMismatch, UnusablePrompt
from mor_trainer.ranks import Ranks
from mor_trainer.reporting.measurement import FinishedStep, RunTotals
from mor_trainer.reporting.reporter import StepReporter
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease
from mor_trainer.run.processed_prompts import ProcessedPrompts
from mor_trainer.run.prompt_opening import open_run_prompts
from mor_trainer.run.training_groups import training_group
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.learner import GroupsUnusable, Learner
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import UpdateReport
from mor_trainer.weights.background_publication import BackgroundPublication
from mor_trainer.weights.publisher import Publisher
from mor_trainer.weights.version_files import published_versions

_SLICE_S = 0.5
"""Longest wait for groups between checks for pause, stop and a lost lease, seconds."""
_CHECK_S = 0.1
"""Seconds between checks while the loop waits for something other than groups."""

_CHECKPOINTS = StoredEntries("checkpoints")

log = structlog.get_logger(__name__)


def run_folder(settings: WorkerSettings, run: str) -> Path:
    return settings.runs_dir / run


class TrainingLoop:
    """One attempt at a run, on the calling thread; groups, heartbeats and events live on the portal's event loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        claim: Claim,
        *,
        portal: BlockingPortal,
        lease: RunLease,
        events: EventLog,
        ranks: Ranks,
    ) -> None:
        self._settings, self._claim, self._spec = settings, claim, claim.spec
        self._portal, self._lease, self._events, self._ranks = portal, lease, events, ranks
        self._interruption = Interruption(portal, lease, ranks)
        self._folder = run_folder(settings, claim.run)
        self.step = 0
        self._version = -1
        self._evaluated: int | None = None
        self._checkpointed: int | None = None
        self._unreadable: list[str] = []
        """Problems of checkpoints that cannot be read."""
        self._replay_log = ReplayLog(self._folder)
        self._reporter = StepReporter(portal, events, claim.run, claim.spec)
        self._timer = StepTimer()

    def run(self) -> Path:
        """Train to the last step, export the model and return its folder.

        Raises:
            RunInterrupted: run control stopped the run, or the process must end; the checkpoint is written.
            RunLeaseLost: the run belongs to another worker; nothing was written after that.
            MorError: the run cannot continue; the message names the remedy.
        """
        self._opened = open_run_prompts(
            self._settings, self._claim, self._folder,
            portal=self._portal, lease=self._lease, interruption=self._interruption,
        )  # fmt: skip
        self._prompts, self._evaluation_prompts = self._opened.training, self._opened.evaluation
        self._learner = Learner.lead(self._settings, self._spec, self._folder, self._ranks, self._prompts)
        self._processed = ProcessedPrompts(self._prompts, self._learner)
        self._learner.updater.optimiser.register_step_pre_hook(lambda *_: self._finish_publication())
        if self._spec.deterministic:
            self._replay_log.pin_conditions(ReplayConditions.of(self._settings, self._ranks))
        state = self._restore()
        self._order = PromptOrder.of_run(self._spec, self._prompts.rows)
        replays = self._replayed_step(self.step + 1) is not None
        self._exchange = self._portal.call(self._make_exchange)
        publisher = Publisher(
            self._settings, self._claim, self._folder, self._learner.policy,
            portal=self._portal, exchange=self._exchange, emit=self._emit,
        )  # fmt: skip
        self._publication = BackgroundPublication(publisher.publish, self._settings.publication_timeout_s)
        ledger = state.ledger if state else None
        self._portal.call(functools.partial(self._exchange.start, self.step, ledger, issuing=not replays))
        try:
            self._emit("state", {"name": "resumed" if state else "started", "from_step": self.step})
            for reason in self._unreadable:
                self._emit("alert", {"name": "checkpoint_unreadable", "reason": f"{reason}; an older one is used"})
            if state is None and (left_out := self._opened.summary) is not None:
                self._emit("alert", {"name": "prompts_left_out", "reason": left_out})
            self._publish()
            self._publication.finish()
            self._timer = StepTimer()
            while self.step < self._spec.steps:
                self._obey_run_control()
                self._one_step()
            self._publication.finish()
            self._evaluate()
            self._checkpoint()
            self._finish_evaluation()
        finally:
            self._publication.close()
            publisher.close()
            self._portal.call(self._exchange.close)
        return self._export()

    async def _make_exchange(self) -> GroupExchange:
        return GroupExchange(
            self._settings, self._claim.run, self._spec, prompts=self._prompts,
            order=self._order, left_out=self._opened.left_out, events=self._events,
        )  # fmt: skip

    def _restore(self) -> loop_checkpoint.LoopState | None:
        """Continue from the newest checkpoint that can be read, if there is one.

        Raises:
            Invalid: there are checkpoints, and none can be read.
        """
        atomic.sweep(self._folder)
        found = loop_checkpoint.checkpoints(self._folder)
        for checkpoint in reversed(found):
            try:
                state = loop_checkpoint.read_state(checkpoint)
                self._learner.restore(checkpoint)
            except Invalid as error:
                _CHECKPOINTS.refuse(checkpoint, str(error))
                self._unreadable.append(str(error))
                continue
            self.step = self._checkpointed = state.step
            self._reporter.restore(state.gate_version, state.client_failures)
            log.info("resumed", run=self._claim.run, step=self.step, checkpoint=str(checkpoint))
            return state
        if found:
            raise Invalid(f"{self._unreadable[0]}; restore a checkpoint from a backup, or create a new run")
        return None

    # --- one step -----------------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        with self._timer.measure("processing"):
            self._evaluate()
            if requests := self._lease.replay_requests:
                self._processed.forget_failures()
                self._portal.call(self._exchange.replay, requests)
            replayed = self._replay()
            under_way = self._portal.call(self._exchange.top_up)
            self._processed.prepare(under_way)  # the engine samples meanwhile
            taken, skipped, groups = replayed or self._collect([])
        began = time.time()
        try:
            update = self._update(taken, skipped, groups)
        except GroupsUnusable as error:
            if replayed:  # the same bits need the same groups
                raise
            taken, skipped, update = self._update_without(error, taken, skipped)
        trained = (began, time.time())
        self.step += 1
        with self._timer.measure("publication"):
            self._publish()
            if not self._spec.max_staleness:  # nothing to compute before the new version has sampled
                self._publication.finish()
        if self.step % self._spec.checkpoint_every == 0:
            with self._timer.measure("checkpoint"):
                self._checkpoint()
        self._report_step(taken, skipped, update, trained)

    def _replay(self) -> tuple[list[ScoredGroup], list[ScoredGroup], list[TrainingGroup]] | None:
        """Return the groups that a deterministic run took for this step in an attempt that died, if it did."""
        replayed = self._replayed_step(self.step + 1)
        self._portal.call(self._exchange.set_issuing, replayed is None)
        if replayed is None:
            return None
        self._portal.call(self._exchange.adopt, replayed.ledger)
        return replayed.taken, replayed.skipped, [self._training_group(group) for group in replayed.taken]

    def _replayed_step(self, step: int) -> ReplayedStep | None:
        return self._replay_log.read(step) if self._spec.deterministic else None

    def _update(
        self, taken: Sequence[ScoredGroup], skipped: Sequence[ScoredGroup], groups: Sequence[TrainingGroup]
    ) -> UpdateReport:
        with self._exchange.traces.updating(self._claim.run, self.step + 1, taken, skipped):
            return self._learner.update(groups, self.step + 1, timer=self._timer)

    def _update_without(
        self, unusable: GroupsUnusable, taken: list[ScoredGroup], skipped: list[ScoredGroup]
    ) -> tuple[list[ScoredGroup], list[ScoredGroup], UpdateReport]:
        """Drop the groups of a step that a rank cannot use, and train on others in their place."""
        while True:
            for place, reason in unusable.reasons.items():
                self._portal.call(self._exchange.reject, taken[place], reason)
            others = [group for place, group in enumerate(taken) if place not in unusable.reasons]
            self._portal.call(self._exchange.put_back, others)
            self._portal.call(self._exchange.top_up)
            taken, skipped, groups = self._collect(skipped)
            try:
                return taken, skipped, self._update(taken, skipped, groups)
            except GroupsUnusable as error:
                unusable = error

    def _collect(
        self, skipped_before: list[ScoredGroup]
    ) -> tuple[list[ScoredGroup], list[ScoredGroup], list[TrainingGroup]]:
        """Collect the groups of a step: those to train on, those skipped, and the former as the update takes them.

        A group whose prompt differs between engine and trainer is dropped and replaced. A group whose rewards are all
        alike is skipped and replaced, within the bound of dynamic sampling. ``skipped_before``: those that the step has
        skipped already.
        """
        wanted = self._spec.groups_per_step
        dynamic = self._spec.algorithm.dynamic_sampling
        taken: list[ScoredGroup] = []
        skipped = list(skipped_before)
        groups: list[TrainingGroup] = []
        while len(groups) < wanted:
            with self._timer.measure("waiting"):
                arrived = self._portal.call(self._exchange.take, wanted - len(groups), _SLICE_S)
            for scored in arrived:
                try:
                    group = self._training_group(scored)
                except (PromptMismatch, UnusablePrompt, DataFileError) as error:
                    self._portal.call(self._exchange.reject, scored, str(error))
                    continue
                if has_signal(group.rewards, dynamic) or len(skipped) == max_replacements(dynamic, wanted):
                    groups.append(group)
                    taken.append(scored)
                else:
                    skipped.append(scored)
            if len(groups) < wanted:
                self._interruption.check_lease()
                self._publication.check()
                if self._interruption.wanted:  # a checkpoint must not count the groups of an unfinished step as applied
                    self._portal.call(self._exchange.put_back, [*taken, *skipped[len(skipped_before) :]])
                    taken, skipped, groups = [], list(skipped_before), []
                    self._obey_run_control()
                self._portal.call(self._exchange.top_up, len(groups))
                self._check_stall()
        self._portal.call(self._exchange.skip, len(skipped) - len(skipped_before))
        if self._spec.deterministic:
            self._replay_log.write(self.step + 1, taken, skipped, self._portal.call(self._exchange.state))
        self._portal.call(self._exchange.top_up, len(groups))
        return taken, skipped, groups

    def _training_group(self, group: ScoredGroup) -> TrainingGroup:
        """Return a group as the update takes it.

        Raises:
            PromptMismatch: engine and trainer did not see the same prompt, or a response is none of this model.
            UnusablePrompt: the prompt cannot be processed.
            DataFileError: the prompt's pictures changed since it was issued.
            Invalid: a deterministic run, and another gate version scored the group.
        """
        if self._spec.deterministic:
            self._replay_log.check_gate(group.record)
        index = self._order.draw(group.number).row
        return training_group(
            group, index, self._processed[index], self._spec, vocabulary=self._learner.policy.vocabulary
        )

    def _images(self, number: int) -> dict[str, bytes]:
        try:
            return self._prompts[self._order.draw(number).row].images
        except DataFileError:
            return {}

    def _check_stall(self) -> None:
        idle = self._portal.call(self._exchange.idle_s)
        if idle > self._settings.stall_timeout_s:
            depths = self._portal.call(self._exchange.depths)
            raise Unavailable(
                f"no scored group came back for {idle:.0f} s (MOR_STALL_TIMEOUT_S); entries in the streams: {depths}. "
                "Entries in 'prompts': is the rollout service running? In 'rollouts': is the router, with clients?"
            )

    # --- reporting ----------------------------------------------------------------------------------------------

    def _report_step(
        self,
        taken: list[ScoredGroup],
        skipped: list[ScoredGroup],
        update: UpdateReport,
        trained: tuple[float, float],
    ) -> None:
        groups = self._portal.call(self._exchange.counts)
        began_at = self._timer.began_at
        seconds, named = self._timer.finish()
        self._timer = StepTimer()  # reporting counts into the next step, so that no second is left out
        totals = RunTotals(
            weights_version=self._version,
            groups_drawn=groups.drawn,
            groups_applied=groups.applied,
            groups_skipped=groups.skipped,
            groups_dropped=groups.dropped,
            groups_retried=groups.retried,
            groups_duplicate=groups.duplicate,
        )
        phases = PhaseSeconds(**named)
        step = FinishedStep(taken, skipped, update, began_at, trained, seconds, phases, totals, self._order)
        with self._timer.measure("processing"):
            self._reporter.step(self.step, step, self._images)

    def _emit(self, kind: Any, data: dict[str, Any]) -> None:
        self._reporter.emit(kind, self.step, data)

    # --- evaluation, versions, checkpoints ----------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Start an evaluation at step 0, at every interval, and after the last step."""
        due = self.step % self._spec.evaluation_every == 0 or self.step == self._spec.steps
        if self._evaluation_prompts and due and self._evaluated != self.step:
            self._evaluated = self.step
            self._finish_publication()  # the evaluation samples from this version
            self._portal.call(self._exchange.begin_evaluation, self.step, self._version, self._evaluation_prompts)

    def _finish_evaluation(self) -> None:
        """Wait for the last evaluation, for as long as all attempts of a group may take."""
        deadline = time.monotonic() + self._settings.group_timeout_s * self._settings.group_attempts
        while self._portal.call(self._exchange.evaluating) and time.monotonic() < deadline:
            self._obey_run_control()
            time.sleep(_CHECK_S)

    def _publish(self) -> None:
        """Make the policy the next version and begin to publish it; the next optimiser step waits for the files."""
        self._interruption.check_lease()
        self._version = 1 + max([self._version, *published_versions(self._folder)])
        self._portal.call(self._exchange.advance, self.step, self._version)
        self._publication.begin(self._version, self._learner.gather())

    def _finish_publication(self) -> None:
        with self._timer.measure("publication"):
            self._publication.finish()

    def _checkpoint(self) -> None:
        """Write a checkpoint of the whole loop, unless this step has one."""
        if self._checkpointed == self.step:
            return
        self._interruption.check_lease()
        begun = time.perf_counter()
        state = loop_checkpoint.LoopState(
            step=self.step,
            weights_version=self._version,
            gate_version=self._reporter.gate_version,
            ledger=self._portal.call(self._exchange.state),
            client_failures=dict(self._reporter.client_failures),
            spec=self._spec,
            prompts=self._opened.hashes,
        )
        path = self._learner.save(state)
        self._checkpointed = self.step
        self._emit("checkpoint", {"path": str(path.resolve()), "seconds": time.perf_counter() - begun})

    def _export(self) -> Path:
        self._interruption.check_lease()
        target = self._folder / "final"
        self._learner.export(target)
        return target.resolve()

    # --- run control --------------------------------------------------------------------------------------------

    def _obey_run_control(self) -> None:
        """Pause, stop or hand back the run where run control or the process wants it, after a checkpoint.

        Raises:
            RunInterrupted: the run was stopped, or the process must end.
            RunLeaseLost: the run belongs to another worker.
        """
        if self._interruption.obey(self._checkpoint):
            self._timer.restart()
