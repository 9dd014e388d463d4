"""Requests to pause, stop or hand back a run, obeyed between two pieces of its work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from anyio.from_thread import BlockingPortal
from mor_core.runs import RunState

from mor_trainer.ranks import Abandoned, Ranks
from mor_trainer.run.lease import RunLease, RunLeaseLost

_CHECK_S = 0.1
"""Seconds between checks while a run is paused."""


T = TypeVar("T")


class RunInterrupted(Exception):
    """The attempt ends before the last step: the run was stopped, or the process must end."""

    def __init__(self, state: RunState) -> None:
        super().__init__(state)
        self.state = state


class _GivenUp(Exception):
    """Work that is to be done anew was given up."""


class Interruption:
    """Orders to pause, stop or hand back a run, from run control or from a signal to this process."""

    def __init__(self, portal: BlockingPortal, lease: RunLease, ranks: Ranks) -> None:
        self._portal, self._lease, self._ranks = portal, lease, ranks

    @property
    def wanted(self) -> bool:
        """True where the run shall pause, stop or be handed back."""
        return self._ranks.ending or self._lease.desired != "run"

    def check_lease(self) -> None:
        """Check that the run still belongs to this worker.

        Raises:
            RunLeaseLost: it does not.
        """
        if (reason := self._lease.lost) is not None:
            raise RunLeaseLost(reason)

    def obey(self, secure: Callable[[], None]) -> bool:
        """Pause, stop or hand back the run where that is wanted, after ``secure``. Return whether it paused.

        Raises:
            RunInterrupted: the run was stopped, or the process must end.
            RunLeaseLost: the run belongs to another worker.
        """
        self.check_lease()
        if not self.wanted:
            return False
        secure()
        if self._ranks.ending:
            raise RunInterrupted(RunState.queued)
        if self._lease.desired == "stop":
            raise RunInterrupted(RunState.stopped)
        self._portal.call(self._lease.report_held, RunState.paused)
        while self._lease.desired == "pause" and not self._ranks.ending:
            self.check_lease()
            time.sleep(_CHECK_S)
        self._portal.call(self._lease.report_held, RunState.running)
        self.obey(secure)
        return True

    def abandon_at_end(self, work: Callable[[], T]) -> T:
        """Do ``work``, which is left at once where the process is to end: it takes minutes, and costs nothing but time.

        Raises:
            RunInterrupted: the process must end.
        """
        try:
            with self._ranks.abandonable():
                return work()
        except Abandoned:
            raise RunInterrupted(RunState.queued) from None

    def obey_by_repeating(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Do ``work``, and do it anew after a pause: it keeps others waiting, so it ends when the run pauses.

        ``work`` calls what it is given between two pieces. Errors are those of ``obey``.
        """

        def give_up() -> None:
            self.check_lease()
            if self.wanted:
                raise _GivenUp

        while True:
            try:
                return work(give_up)
            except _GivenUp:
                self.obey(lambda: None)
