"""Training loop of one run: groups in, updates, versions out, until the last step.

::

    TrainingWorker ─▶ TrainingLoop ─▶ RunLease           pause, stop, replay requests
    TrainingLoop ─▶ Learner                              update, save and gather, on all ranks
    TrainingLoop ──portal──▶ GroupExchange               issue and take groups
    TrainingLoop ─▶ PolicyVersions ─▶ Publisher ──portal──▶ GroupExchange
    TrainingLoop ─▶ ReplayLog; StepReporter ──portal──▶ EventLog
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anyio.from_thread import BlockingPortal
from mor_core.errors import DataFileError, Unavailable
from mor_core.runs import Claim
from mor_core.step_metrics import PhaseSeconds

from mor_trainer.algorithm.dynamic_sampling import has_signal, max_replacements
from mor_trainer.attempt_folder import AttemptFolder
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.exchange import GroupExchange
from mor_trainer.groups.pinned_scoring import PinnedScoring
from mor_trainer.groups.prompt_order import PromptOrder
from mor_trainer.groups.replay_log import ReplayConditions, ReplayedStep, ReplayLog
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.prompt_processor import PromptMismatch, UnusablePrompt
from mor_trainer.model.standby import StandbyModel
from mor_trainer.ranks import Ranks
from mor_trainer.reporting.measurement import FinishedStep, RunTotals
from mor_trainer.reporting.reporter import StepReporter
from mor_trainer.run.disk_wait import DiskWait
from mor_trainer.run.evaluation_schedule import EvaluationSchedule
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease
from mor_trainer.run.policy_versions import PolicyVersions
from mor_trainer.run.processed_prompts import ProcessedPrompts
from mor_trainer.run.prompt_opening import open_run_prompts
from mor_trainer.run.room_check import check_room, run_size
from mor_trainer.run.training_groups import training_group
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.learner import GroupsUnusable, Learner
from mor_trainer.update.resumption import Restart, Resumption, resume
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import UpdateReport
from mor_trainer.weights.published_type import PublishedType
from mor_trainer.weights.publisher import Publisher
from mor_trainer.weights.version_files import newest_version

_SLICE_S = 0.5
"""Longest wait for groups between checks for pause, stop and a lost lease, seconds."""


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
        standby: StandbyModel,
    ) -> None:
        self._settings, self._claim, self._spec = settings, claim, claim.spec
        self._portal, self._lease, self._events, self._ranks = portal, lease, events, ranks
        self._standby, self._interruption = standby, Interruption(portal, lease, ranks)
        self._folder = run_folder(settings, claim.run)
        self._disk = DiskWait(
            self._folder, settings.disk_reserve_bytes, lease=lease, interruption=self._interruption,
            low=lambda reason: self._emit("alert", {"name": "disk_low", "reason": reason}),
        )  # fmt: skip
        self.step, self._timer = 0, StepTimer()
        self._checkpointed: int | None = None
        self._attempt_folder = AttemptFolder(self._folder, claim.attempt)
        self._staging = self._attempt_folder.path
        self._replay_log = ReplayLog(self._folder, self._staging)
        self._pinned: PinnedScoring | None = None
        self._reporter = StepReporter(portal, events, claim.run, claim.spec)

    def run(self) -> Path:
        """Train to the last step, export the model and return its folder.

        Raises:
            RunInterrupted: run control stopped the run, or the process must end; the checkpoint is written.
            RunLeaseLost, Superseded: the run belongs to another worker; nothing was written after that.
            MorError: the run cannot continue; the message names the remedy.
        """
        self._interruption.obey(lambda: None)
        claim_folder = functools.partial(self._attempt_folder.claim, lambda: self._portal.call(self._lease.confirm))
        self._disk.write("the folder of the attempt", claim_folder)
        self._opened = open_run_prompts(
            self._settings, self._claim, self._folder, self._staging,
            portal=self._portal, lease=self._lease, interruption=self._interruption, disk=self._disk,
        )  # fmt: skip
        self._prompts = self._opened.training
        self._interruption.obey(lambda: None)
        load = functools.partial(
            Learner.lead, self._settings, self._spec, self._folder, self._ranks, self._prompts,
            staging=self._staging, standby=self._standby,
        )  # fmt: skip
        self._learner = self._interruption.abandon_at_end(load)
        self._interruption.obey(lambda: None)
        engines = functools.partial(self._portal.call, self._lease.engines)
        published = PublishedType(self._settings.published_dtype, self._spec.model, engines)
        size = run_size(self._learner, published.current())
        if warning := check_room(self._spec, size, self._folder, self._settings.disk_reserve_bytes, engines()):
            self._emit("alert", {"name": "disk_low", "reason": warning})
        self._processed = ProcessedPrompts(self._prompts, self._learner)
        if self._ranks.size == 1:  # the files are written from the very tensors that the optimiser changes
            self._learner.updater.optimiser.register_step_pre_hook(lambda *_: self._finish_publication())
        if self._spec.deterministic:
            conditions = ReplayConditions.of(self._settings, self._ranks)
            self._disk.write("the replay log", lambda: self._replay_log.pin_conditions(conditions))
            self._pinned = PinnedScoring(self._folder, self._replay_log.first_record, self._staging)
        resumption, newest = self._resume()
        self._order = PromptOrder.of_run(self._spec, self._prompts.rows)
        exchange = functools.partial(
            GroupExchange, self._settings, self._claim.run, self._spec, prompts=self._prompts,
            order=self._order, left_out=self._opened.left_out, events=self._events,
            fence=self._lease.fence, pinned=self._pinned,
        )  # fmt: skip
        self._exchange = self._portal.call(exchange)  # it belongs to the event loop's thread
        publisher = Publisher(
            self._settings, self._claim, self._folder, self._staging, self._learner.policy,
            portal=self._portal, exchange=self._exchange, emit=self._emit, check_lease=self._interruption.check_lease,
            published_type=published,
        )  # fmt: skip
        self._versions = PolicyVersions(
            newest, publisher, self._settings.publication_timeout_s,
            learner=self._learner, portal=self._portal, exchange=self._exchange, disk=self._disk,
        )  # fmt: skip
        self._evaluations = EvaluationSchedule(self._spec, self._opened.evaluation, self._portal, self._exchange)
        ledger = resumption.state.ledger if isinstance(resumption, Resumption) else None
        issuing = self._replayed_step(self.step + 1) is None
        self._portal.call(functools.partial(self._exchange.start, self.step, ledger, issuing=issuing))
        try:
            self._reporter.beginning(resumption, left_out=self._opened.summary)
            self._evaluations.resume(resumption.state if isinstance(resumption, Resumption) else None)
            self._publish()
            self._finish_publication()
            self._timer = StepTimer()
            while self.step < self._spec.steps:
                self._obey_run_control()
                self._one_step()
            self._evaluations.begin(self.step, self._published_version)
            self._finish_publication()
            self._checkpoint()
            self._evaluations.finish(
                self._settings.group_timeout_s * self._settings.group_attempts, self._while_evaluating
            )
            return self._export()
        finally:
            self._versions.close(hurried=self._ranks.ending)
            self._portal.call(self._exchange.close, lambda: self._ranks.ending)

    def _resume(self) -> tuple[Resumption | Restart, int]:
        """Continue from the newest good checkpoint, if there is one; return also the newest version anyone may have.

        Raises:
            Invalid: there are checkpoints, and none can be used.
        """
        redo = self._spec.keep_checkpoints * self._spec.checkpoint_every
        resumption = resume(self._folder, self._learner, self._interruption.check_lease, redo=redo)
        known = [self._claim.weights_version]
        if isinstance(resumption, Resumption):
            state = resumption.state
            self.step = self._checkpointed = state.step
            self._reporter.restore(state.gate_version, state.client_failures)
            self._portal.call(self._events.carry, state.events)
            known.append(state.weights_version)
        return resumption, newest_version(self._folder, known)

    def _one_step(self) -> None:
        with self._timer.measure("processing"):
            self._evaluations.begin(self.step, self._published_version)
            if requests := self._lease.replay_requests:
                self._processed.forget_failures()
                self._portal.call(self._exchange.replay, requests)
            replayed = self._replay()
            self._processed.expect(self._portal.call(self._exchange.top_up))
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
                self._finish_publication()
        self._report_step(taken, skipped, update, trained)
        if self.step % self._spec.checkpoint_every == 0:
            with self._timer.measure("checkpoint"):
                self._checkpoint()  # after the report, so that the report is in the checkpoint until it is seen

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

        Prompts of others are processed meanwhile. A group whose prompt differs between engine and trainer is replaced,
        and one without signal within the bound of dynamic sampling, of which ``skipped_before`` counts.
        """
        wanted = self._spec.groups_per_step
        dynamic = self._spec.algorithm.dynamic_sampling
        taken: list[ScoredGroup] = []
        skipped = list(skipped_before)
        groups: list[TrainingGroup] = []
        while len(groups) < wanted:
            with self._timer.measure("waiting"):
                longest_s = 0.0 if self._processed.expected else _SLICE_S
                arrived = self._portal.call(self._exchange.take, wanted - len(groups), longest_s)
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
                self._processed.process_expected()
                self._interruption.check_lease()
                self._versions.check()
                if self._interruption.wanted:  # a checkpoint must not count the groups of an unfinished step as applied
                    self._portal.call(self._exchange.put_back, [*taken, *skipped[len(skipped_before) :]])
                    taken, skipped, groups = [], list(skipped_before), []
                    self._obey_run_control()
                self._processed.expect(self._portal.call(self._exchange.top_up, len(groups)))
                self._disk.note(self._portal.call(self._exchange.no_room))
                self._publish_again()
                self._check_stall()
        self._disk.note(None)
        self._portal.call(self._exchange.skip, len(skipped) - len(skipped_before))
        if self._spec.deterministic:
            ledger = self._portal.call(self._exchange.state)
            record = functools.partial(self._replay_log.write, self.step + 1, taken, skipped, ledger)
            self._interruption.check_lease()
            self._disk.write("the replay log", record)
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
        if self._pinned is not None:
            self._pinned.check_gate(group.record)
        index = self._order.draw(group.number).row
        return training_group(
            group, index, self._processed[index], self._spec, vocabulary=self._learner.policy.vocabulary
        )

    def _check_stall(self) -> None:
        idle = min(self._portal.call(self._exchange.idle_s), time.monotonic() - self._disk.ended)
        if idle > self._settings.stall_timeout_s:
            found = self._portal.call(self._exchange.describe_stall)
            raise Unavailable(f"no scored group came back for {idle:.0f} s (MOR_STALL_TIMEOUT_S); {found}")

    def _report_step(
        self, taken: list[ScoredGroup], skipped: list[ScoredGroup], update: UpdateReport, trained: tuple[float, float]
    ) -> None:
        began_at = self._timer.began_at
        seconds, named = self._timer.finish()
        self._timer = StepTimer()  # reporting counts into the next step, so that no second is left out
        totals = RunTotals.of(self._versions.newest, self._portal.call(self._exchange.counts))
        step = FinishedStep(
            taken, skipped, update, began_at, trained, seconds, PhaseSeconds(**named), totals, self._order
        )
        with self._timer.measure("processing"):
            self._reporter.step(self.step, step, lambda number: self._processed.images(self._order.draw(number).row))

    def _emit(self, kind: Any, data: dict[str, Any]) -> None:
        self._reporter.emit(kind, self.step, data)

    def _while_evaluating(self) -> None:
        self._obey_run_control()
        self._publish_again()

    def _publish(self) -> None:
        """Make the policy the next version and begin to publish it; the next optimiser step waits for the files."""
        self._interruption.check_lease()
        self._versions.publish(self.step)

    def _publish_again(self) -> None:
        """Publish the policy once more where an engine cannot use its newest version."""
        self._interruption.check_lease()
        if (reason := self._versions.publish_again()) is not None:
            self._emit("alert", {"name": "weights_republished", "reason": reason})

    def _finish_publication(self) -> None:
        with self._timer.measure("publication"):
            self._versions.finish()

    def _published_version(self) -> int:
        self._finish_publication()
        return self._versions.newest

    def _checkpoint(self) -> None:
        """Write a checkpoint of the whole loop, unless this step has one."""
        if self._checkpointed == self.step:
            return
        self._interruption.check_lease()
        begun = time.perf_counter()
        state = loop_checkpoint.LoopState(
            step=self.step,
            weights_version=self._versions.newest,
            gate_version=self._reporter.gate_version,
            ledger=self._portal.call(self._exchange.state),
            client_failures=dict(self._reporter.client_failures),
            spec=self._spec,
            prompts=self._opened.hashes,
            events=self._portal.call(self._events.untold),
            **self._evaluations.state(),
        )
        size = self._learner.checkpoint_bytes()
        path = self._disk.write(f"checkpoint of step {self.step}", lambda: self._learner.save(state), size)
        self._checkpointed = self.step
        self._emit("checkpoint", {"path": str(path.resolve()), "seconds": time.perf_counter() - begun})

    def _export(self) -> Path:
        self._interruption.check_lease()
        target = self._folder / "final"
        export = functools.partial(self._interruption.abandon_at_end, lambda: self._learner.export(target))
        self._disk.write("the final model", export, self._learner.model_bytes())
        self._attempt_folder.release()
        return target.resolve()

    def _obey_run_control(self) -> None:
        """Pause, stop or hand back the run where run control or the process wants it, after a checkpoint.

        Raises:
            RunInterrupted: the run was stopped, or the process must end.
            RunLeaseLost: the run belongs to another worker.
        """
        if self._interruption.obey(self._checkpoint):
            self._portal.call(self._exchange.resume_waiting)
            self._timer.restart()
