"""Schedule of a run's evaluations: at step 0, at every interval, and after the last step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from anyio.from_thread import BlockingPortal
from mor_core.runs import RunSpec

from mor_trainer.groups.exchange import GroupExchange
from mor_trainer.prompts.source_prompts import SourcePrompts
from mor_trainer.update.loop_checkpoint import LoopState

_CHECK_S = 0.1
"""Seconds between checks for the results of an evaluation."""


class EvaluationSchedule:
    """Evaluations of one attempt at a run; one that was going on at the checkpoint continues."""

    def __init__(self, spec: RunSpec, prompts: SourcePrompts, portal: BlockingPortal, exchange: GroupExchange) -> None:
        self._spec, self._prompts = spec, prompts
        self._portal, self._exchange = portal, exchange
        self._latest: int | None = None
        """Step of the latest evaluation."""

    def resume(self, state: LoopState | None) -> None:
        """Continue the evaluation of a checkpoint, if there is one."""
        if state is None or not self._prompts:
            return
        self._portal.call(self._exchange.restore_evaluated, state.evaluated)
        if state.evaluation is not None:
            self._latest = state.evaluation.step
            self._portal.call(self._exchange.resume_evaluation, state.evaluation, self._prompts)

    def state(self) -> dict[str, Any]:
        """Return the fields of a checkpoint's ``LoopState`` that ``resume`` needs."""
        return {
            "evaluation": self._portal.call(self._exchange.evaluation_state),
            "evaluated": self._portal.call(self._exchange.evaluated),
        }

    def begin(self, step: int, published: Callable[[], int]) -> None:
        """Begin the evaluation after ``step`` steps, if one is due.

        ``published`` waits until the policy is published, and returns its version, from which the evaluation samples.
        """
        due = step % self._spec.evaluation_every == 0 or step == self._spec.steps
        if self._prompts and due and self._latest != step:
            self._latest = step
            self._portal.call(self._exchange.begin_evaluation, step, published(), self._prompts)

    def finish(self, timeout_s: float, meanwhile: Callable[[], None]) -> None:
        """Wait for the last evaluation, at most ``timeout_s``; ``meanwhile`` is called again and again."""
        deadline = time.monotonic() + timeout_s
        while self._portal.call(self._exchange.evaluating) and time.monotonic() < deadline:
            meanwhile()
            time.sleep(_CHECK_S)
