"""The training loop of one run: groups in, updates, versions out, until the last step."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog
from anyio.from_thread import BlockingPortal
from mor_core.datafiles import Prompt, read_prompts
from mor_core.errors import Invalid, Unavailable
from mor_core.runs import Claim, RunState

from mor_trainer import atomic
from mor_trainer.algorithm.dynamic_sampling import has_signal, max_replacements
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.groups.exchange import Groups
from mor_trainer.groups.ledger import LedgerState
from mor_trainer.groups.replay_log import Conditions, Record, StepRecord
from mor_trainer.groups.scored import Taken
from mor_trainer.model.micro_batches import TrainingGroup
from mor_trainer.model.prompt_tokenizer import PromptMismatch, check_same_prompt
from mor_trainer.ranks import Ranks
from mor_trainer.reporting.reporter import Step, Teller
from mor_trainer.run.lease import Hold, HoldLost
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.learner import Learner
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import UpdateReport
from mor_trainer.weights.publication import Publication
from mor_trainer.weights.published import published
from mor_trainer.weights.publisher import Publisher

_SLICE_S = 0.5
"""Longest wait without a look at what run control wants."""

log = structlog.get_logger(__name__)


class Interrupted(Exception):
    """The run ends here for now: stopped, or the process was told to end."""

    def __init__(self, state: RunState) -> None:
        super().__init__(state)
        self.state = state


def run_folder(settings: WorkerSettings, run: str) -> Path:
    return settings.runs_dir / run


class Training:
    """One attempt at a run, in the calling thread; groups, heartbeats and events live on the portal's event loop."""

    def __init__(
        self,
        settings: WorkerSettings,
        claim: Claim,
        *,
        portal: BlockingPortal,
        hold: Hold,
        events: EventLog,
        ranks: Ranks,
    ) -> None:
        self._settings, self._claim, self._spec = settings, claim, claim.spec
        self._portal, self._hold, self._events, self._ranks = portal, hold, events, ranks
        self._folder = run_folder(settings, claim.run)
        self._prompts = read_prompts(Path(self._spec.prompts))
        evaluation = self._spec.evaluation_prompts
        self._evaluation_prompts = read_prompts(Path(evaluation)) if evaluation else []
        self.step = 0
        self._version = -1
        self._evaluated: int | None = None
        self._checkpointed: int | None = None
        self._record = Record(self._folder)
        self._teller = Teller(portal, events, claim.run, claim.spec)
        self._shares = StepTimer()

    def run(self) -> Path:
        """Train to the last step and export the model; returns the exported folder.

        Raises:
            Interrupted: stopped by run control, or the process was told to end; the checkpoint is written.
            HoldLost: the run is another worker's; nothing was written after that.
            MorError: the run cannot go on, with what to do.
        """
        self._learner = Learner.lead(self._settings, self._spec, self._folder, self._ranks, self._prompts)
        self._learner.updater.optimiser.register_step_pre_hook(lambda *_: self._finish_publication())
        if self._spec.deterministic:
            self._record.hold_to(Conditions.of(self._settings, self._ranks))
        state = self._restore()
        self._groups = self._portal.call(self._make_groups)
        publisher = Publisher(
            self._settings, self._claim, self._folder, self._learner.policy,
            portal=self._portal, groups=self._groups, emit=self._emit,
        )  # fmt: skip
        self._publication = Publication(publisher.publish, self._settings.publication_timeout_s)
        self._portal.call(self._groups.start, state.ledger if state else None)
        self._groups.issuing = self._record_of(self.step + 1) is None
        try:
            self._emit("state", {"name": "resumed" if state else "started", "from_step": self.step})
            self._publish()
            self._publication.finish()
            self._shares = StepTimer()
            while self.step < self._spec.steps:
                self._obey()
                self._one_step()
            self._publication.finish()
            self._evaluate()
            self._checkpoint()
            self._finish_evaluation()
        finally:
            self._publication.close()
            publisher.close()
            self._portal.call(self._groups.close)
        return self._export()

    def _make_groups(self) -> Groups:
        return Groups(
            self._settings,
            self._claim.run,
            self._spec,
            prompts=self._prompts,
            events=self._events,
            step=lambda: self.step,
        )

    def _restore(self) -> loop_checkpoint.LoopState | None:
        """Continue from the newest checkpoint, if there is one."""
        atomic.sweep(self._folder)
        found = loop_checkpoint.checkpoints(self._folder)
        if not found:
            return None
        state = loop_checkpoint.read_state(found[-1])
        self._learner.restore(found[-1])
        self.step = self._checkpointed = state.step
        self._teller.restore(state.gate_version, state.client_failures)
        log.info("resumed", run=self._claim.run, step=self.step, checkpoint=str(found[-1]))
        return state

    # --- one step -----------------------------------------------------------------------------------------------

    def _one_step(self) -> None:
        with self._shares.measure("processing"):
            self._evaluate()
            self._portal.call(self._groups.replay, self._hold.replay)
            recorded = self._recorded()
            under_way = self._portal.call(self._groups.top_up)
            self._prepare(self._prompts[index] for index in under_way)  # the engine samples meanwhile
            taken, skipped, groups = recorded or self._collect()
        began = time.time()
        with self._groups.traces.updating(self._claim.run, self.step + 1, taken, skipped):
            update = self._learner.update(groups, self.step + 1, timer=self._shares)
        trained = (began, time.time())
        self.step += 1
        with self._shares.measure("publication"):
            self._publish()
            if not self._spec.max_staleness:  # nothing to compute before the new version has sampled
                self._publication.finish()
        if self.step % self._spec.checkpoint_every == 0:
            with self._shares.measure("checkpoint"):
                self._checkpoint()
        self._tell(taken, skipped, update, trained)

    def _recorded(self) -> tuple[list[Taken], list[Taken], list[TrainingGroup]] | None:
        """What a deterministic run took for this step in an attempt that died."""
        found = self._record_of(self.step + 1)
        self._groups.issuing = found is None
        if found is None:
            return None
        self._portal.call(self._groups.adopt, found.ledger)
        taken, skipped = ([group.taken() for group in groups] for groups in (found.taken, found.skipped))
        return taken, skipped, [self._step_group(item) for item in taken]

    def _record_of(self, step: int) -> StepRecord | None:
        return self._record.read(step) if self._spec.deterministic else None

    def _prepare(self, prompts: Iterable[Prompt]) -> None:
        budget, response = self._spec.micro_batch_tokens, self._spec.sampling.max_tokens
        for prompt in prompts:
            tokens = len(self._learner.tokenize(prompt).token_ids)
            if tokens + response - 1 > budget:
                raise Invalid(
                    f"prompt {prompt.id!r} has {tokens} tokens and with a response of sampling.max_tokens={response} "
                    f"does not fit micro_batch_tokens={budget}; raise the latter or use shorter prompts"
                )

    def _collect(self) -> tuple[list[Taken], list[Taken], list[TrainingGroup]]:
        """The step's groups: to train on, skipped, and those to train on as the update takes them.

        A group whose prompt differs between engine and trainer is dropped and replaced; one whose rewards are all alike
        is skipped and replaced, as far as dynamic sampling goes.
        """
        wanted = self._spec.groups_per_step
        dynamic = self._spec.algorithm.dynamic_sampling
        taken: list[Taken] = []
        skipped: list[Taken] = []
        groups: list[TrainingGroup] = []
        while len(groups) < wanted:
            with self._shares.measure("waiting"):
                arrived = self._portal.call(self._groups.take, wanted - len(groups), _SLICE_S)
            for item in arrived:
                try:
                    group = self._step_group(item)
                except PromptMismatch as error:
                    self._portal.call(self._groups.reject, item, str(error))
                    continue
                if has_signal(group.rewards, dynamic) or len(skipped) == max_replacements(dynamic, wanted):
                    groups.append(group)
                    taken.append(item)
                else:
                    skipped.append(item)
            if len(groups) < wanted:
                self._check_hold()
                self._publication.check()
                if self._interrupting():  # a checkpoint must not count groups as settled by a step that is not finished
                    self._portal.call(self._groups.put_back, [*taken, *skipped])
                    taken, skipped, groups = [], [], []
                    self._obey()
                self._portal.call(self._groups.top_up, len(groups))
                self._check_stall()
        self._portal.call(self._groups.skip, len(skipped))
        if self._spec.deterministic:
            self._record.write(self.step + 1, taken, skipped, self._portal.call(self._ledger_state))
        self._portal.call(self._groups.top_up, len(groups))
        return taken, skipped, groups

    def _step_group(self, item: Taken) -> TrainingGroup:
        record, tokens = item.group.record, item.group.tokens
        if self._spec.deterministic:
            self._record.check_gate(record)
        index = self._prompt_index(item.number)
        prompt = self._learner.tokenize(self._prompts[index])
        check_same_prompt(prompt, record.rollout, tokens)
        return TrainingGroup(
            index, len(prompt.token_ids), tokens.response_token_ids, tokens.response_logprobs, record.rewards
        )

    def _prompt_index(self, number: int) -> int:
        return self._groups.ledger.prompt_of(number)[1]

    def _images(self, number: int) -> dict[str, bytes]:
        return self._prompts[self._prompt_index(number)].images

    def _check_stall(self) -> None:
        idle = self._portal.call(self._groups.idle_s)
        if idle > self._settings.stall_timeout_s:
            depths = self._portal.call(self._groups.depths)
            raise Unavailable(
                f"no scored group came back for {idle:.0f} s (MOR_STALL_TIMEOUT_S); entries in the streams: {depths}. "
                "Entries in 'prompts': is the rollout service running? In 'rollouts': is the router, with clients?"
            )

    # --- telling ------------------------------------------------------------------------------------------------

    def _tell(
        self, taken: list[Taken], skipped: list[Taken], update: UpdateReport, trained: tuple[float, float]
    ) -> None:
        ledger = self._groups.ledger
        began_at = self._shares.began_at
        seconds, named = self._shares.finish()
        self._shares = StepTimer()  # telling belongs to the next step, so that no second is left out
        counts = {
            "weights_version": self._version,
            "groups_applied": ledger.applied,
            "groups_skipped": ledger.skipped,
            "groups_dropped": ledger.dropped,
            "groups_retried": ledger.retried,
            "groups_duplicate": self._groups.duplicates,
        }
        step = Step(taken, skipped, update, began_at, trained, seconds, named, counts)
        with self._shares.measure("processing"):
            self._teller.step(self.step, step, self._images)

    def _emit(self, kind: Any, data: dict[str, Any]) -> None:
        self._teller.emit(kind, self.step, data)

    # --- evaluation, versions, checkpoints ----------------------------------------------------------------------

    def _evaluate(self) -> None:
        """Start an evaluation at step 0, at every interval, and after the last step."""
        due = self.step % self._spec.evaluation_every == 0 or self.step == self._spec.steps
        if self._evaluation_prompts and due and self._evaluated != self.step:
            self._evaluated = self.step
            self._finish_publication()  # it is this version that is evaluated
            self._portal.call(self._groups.evaluate, self.step, self._version, self._evaluation_prompts)

    def _finish_evaluation(self) -> None:
        """The last evaluation belongs to the run; it is waited for as long as a group may take, all attempts."""
        deadline = time.monotonic() + self._settings.group_timeout_s * self._settings.group_attempts
        while self._portal.call(self._groups.evaluating) and time.monotonic() < deadline:
            self._obey()
            time.sleep(0.1)

    def _publish(self) -> None:
        """Make the policy the next version; its files are written beside what follows, until that changes it."""
        self._check_hold()
        self._version = 1 + max([self._version, *published(self._folder)])
        self._portal.call(self._groups.advance, self._version)
        self._publication.begin(self._version, self._learner.gather())

    def _finish_publication(self) -> None:
        with self._shares.measure("publication"):
            self._publication.finish()

    def _checkpoint(self) -> None:
        """Write the whole loop, unless this step has been written."""
        if self._checkpointed == self.step:
            return
        self._check_hold()
        begun = time.perf_counter()
        state = loop_checkpoint.LoopState(
            step=self.step,
            weights_version=self._version,
            gate_version=self._teller.gate_version,
            ledger=self._portal.call(self._ledger_state),
            client_failures=dict(self._teller.client_failures),
            spec=self._spec,
        )
        path = self._learner.save(state)
        self._checkpointed = self.step
        self._emit("checkpoint", {"path": str(path.resolve()), "seconds": time.perf_counter() - begun})

    def _ledger_state(self) -> LedgerState:
        return self._groups.ledger.state()

    def _export(self) -> Path:
        self._check_hold()
        target = self._folder / "final"
        self._learner.export(target)
        return target.resolve()

    # --- run control --------------------------------------------------------------------------------------------

    def _check_hold(self) -> None:
        if self._hold.lost is not None:
            raise HoldLost(self._hold.lost)

    def _interrupting(self) -> bool:
        return self._ranks.ending or self._hold.desired != "run"

    def _obey(self) -> None:
        """Stop or pause here if run control wants it; the checkpoint is written first."""
        self._check_hold()
        if self._ranks.ending:
            self._checkpoint()
            raise Interrupted(RunState.queued)
        if self._hold.desired == "stop":
            self._checkpoint()
            raise Interrupted(RunState.stopped)
        if self._hold.desired == "pause":
            self._checkpoint()
            self._portal.call(self._hold.report, RunState.paused)
            while self._hold.desired == "pause" and not self._ranks.ending and self._hold.lost is None:
                time.sleep(0.1)
            self._shares.restart()
            self._portal.call(self._hold.report, RunState.running)
            self._obey()
