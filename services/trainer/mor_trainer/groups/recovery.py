"""Recovery of groups that do not come back: each is issued again while it has attempts left, else dropped."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from mor_core.run_alerts import AlertName
from mor_core.runs import RunSpec
from mor_core.wire import UNREADABLE, DeadLetter

from mor_trainer.event_log import EventLog
from mor_trainer.groups.bad_groups import REASON_CHARACTERS, PromptsFailed, bounded
from mor_trainer.groups.dispatch_queue import DispatchQueue
from mor_trainer.groups.evaluation import Evaluations
from mor_trainer.groups.group_streams import GroupStreams
from mor_trainer.groups.ledger import Issue, Ledger
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.groups.traces import GroupTraces
from mor_trainer.groups.unusable_versions import MOST_AHEAD, UnusableVersions
from mor_trainer.prompts.source_prompts import SourcePrompts

_ANSWER_S = 10.0
"""Seconds until run control has surely seen the answer to a replay request; a request that remains is a new one."""
_READ_AGAIN_S = 5.0
"""Pause before a prompt is read again: all attempts together outlast a short failure of a disk or network."""

_FAULT_FIRST_S = 1.0
"""Mean pause before a group is issued again that failed once, doubled with each failure: what is taken for a fault may
be a short outage, and must not use up all attempts at once."""
_ABSENT_FIRST_S = 2.0
"""First mean pause before a group is sampled again that clients could not be reached for."""
_ABSENT_LONGEST_S = 30.0
"""Longest such pause: sampling costs more than the router's own attempts."""

log = structlog.get_logger(__name__)


@dataclass
class _Absence:
    """Clients that could not be reached for a group."""

    missing: Mapping[str, str]
    """Client -> the reason."""
    pause_s: float
    """Mean of the last pause, seconds."""


class GroupRecovery:
    """Recovery of one run's groups: lost, overdue, given up by a stage, unfit to be trained on, or wanted once more.

    Every dropped group is an alert. A run with too many bad prompts has a ``failure``.
    """

    def __init__(
        self,
        run: str,
        spec: RunSpec,
        prompts: SourcePrompts,
        timeout_s: float,
        *,
        left_out: int,
        ledger: Ledger[ScoredGroup],
        evaluations: Evaluations,
        dispatch_queue: DispatchQueue,
        group_streams: GroupStreams,
        traces: GroupTraces,
        events: EventLog,
        step: Callable[[], int],
        arrived: asyncio.Event,
        last_arrival: Callable[[], float],
    ) -> None:
        """Initialise the recovery.

        ``timeout_s``: time after which a group is overdue. ``left_out``: rows that were found bad before the first
        step. ``step`` returns the number of finished steps. ``arrived`` is set when a group is dropped: those behind it
        in the order of numbers may be trained on now. ``last_arrival`` returns the monotonic time at which a group last
        came back.
        """
        self._run = run
        self._spec = spec
        self._prompts = prompts
        self._timeout_s = timeout_s
        self._left_out = left_out
        self._ledger = ledger
        self._evaluations = evaluations
        self._dispatch_queue = dispatch_queue
        self._group_streams = group_streams
        self._traces = traces
        self._events = events
        self._step = step
        self._arrived = arrived
        self._unread: dict[str, str] = {}
        """Groups whose prompts could not be read, with the reasons, until they are issued again."""
        self._absences: dict[str, _Absence] = {}
        """Absence of clients for a group, until the group is scored or dropped."""
        self._pausing: set[str] = set()
        """Groups that are issued again once their deadlines pass."""
        self.given_up: list[str] = []
        """Groups that were dropped because they are lost, and whose blobs are not released yet."""
        self._replayed: dict[int, float] = {}
        """Time of the answer to each replay request, by dead letter."""
        self.unusable = UnusableVersions(self._issue_again, last_arrival)
        self.failure: PromptsFailed | None = None
        """Error of a run with more bad prompts than it allows."""

    def deadline(self) -> float:
        """Return the time at which a group that is issued now is overdue."""
        return time.monotonic() + self._timeout_s

    def reissue(self, group_id: str, reason: str, letter: DeadLetter | None = None) -> None:
        """Issue a group again after a pause that failed or was given up by a stage, while it has attempts left; else
        drop it."""
        if letter is not None and letter.weights_version is not None:
            self._await_version(group_id, letter.weights_version, reason)
        elif letter is not None and group_id == UNREADABLE:
            self._alert("unreadable_record", reason, letter)
        elif (issue := self._issue_of(group_id)) is not None:
            pause_s = random.uniform(0.5, 1.5) * _FAULT_FIRST_S * 2.0**issue.attempt
            if self._count_attempt(group_id, reason, time.monotonic() + pause_s, letter):
                self._pausing.add(group_id)

    def _count_attempt(self, group_id: str, reason: str, deadline: float, letter: DeadLetter | None = None) -> bool:
        """Count a failed attempt of an outstanding group. Return whether it has another one; else it is dropped."""
        if group_id in self._evaluations.outstanding:
            row = self._evaluations.row_of(self._evaluations.outstanding[group_id])
            if not self._evaluations.reissue(group_id, deadline, reason):
                self._alert("group_dropped", f"evaluation prompt {row!r}: {reason}", letter, group_id=group_id)
                return False
        else:
            issue = self._ledger.outstanding[group_id]
            if self._ledger.reissue(group_id, deadline) is None:
                self._traces.ended(group_id, "dropped", reason)
                self._dropped(issue.number, reason, letter, group_id)
                self._arrived.set()
                return False
        log.info("group issued again", run=self._run, group=group_id, reason=reason)
        return True

    def _issue_of(self, group_id: str) -> Issue | None:
        return self._ledger.outstanding.get(group_id) or self._evaluations.outstanding.get(group_id)

    def engine_ahead(self, group_id: str, version: int) -> None:
        """Recover a group that was sampled from a newer version than the policy has: one of a lost lineage."""
        reason = f"an engine holds version {version}, newer than {self._ledger.versions[-1]}, the policy's"
        if version > self._ledger.versions[-1] + MOST_AHEAD:
            self.reissue(group_id, reason)
        else:
            self._await_version(group_id, version, reason)

    def _await_version(self, group_id: str, version: int, reason: str) -> None:
        if (issue := self._issue_of(group_id)) is not None:
            issue.deadline = math.inf
            self.unusable.report(group_id, version, reason)

    def _issue_again(self, group_id: str, *, counted: bool = False) -> None:
        """Issue a group again without counting an attempt, because the group did not fail, or it is ``counted``."""
        if group_id in self._ledger.outstanding and not counted:
            self._ledger.resample(group_id, self.deadline())
        self._pausing.discard(group_id)
        self._extend_deadline(group_id)
        self._dispatch_queue.add(group_id)

    async def reissue_overdue(self) -> None:
        """Issue again the groups whose pause is over, and the overdue ones that are lost: those that no stream holds.

        The others wait for what is away, or for their turn: they get more time, and no attempt is counted.
        """
        for group_id in [name for name in self._overdue() if name in self._pausing]:
            self._issue_again(group_id, counted=True)
        self._pausing = {name for name in self._pausing if self._issue_of(name) is not None}
        overdue = self._overdue()
        queued = {*self._dispatch_queue.waiting}  # some are sent to a stream that has been read by then
        waiting = queued | await self._group_streams.holding(overdue) if overdue else set()
        still = self._overdue()  # others came back, or failed, meanwhile
        for group_id in [name for name in overdue if name in still]:
            if group_id in waiting or group_id in self._dispatch_queue.waiting:
                self._extend_deadline(group_id)
            elif self._count_attempt(group_id, self._why_lost(group_id), self.deadline()):
                self._dispatch_queue.add(group_id)
            else:
                self.given_up.append(group_id)

    def _overdue(self) -> list[str]:
        now = time.monotonic()
        evaluated = [name for name, issue in self._evaluations.outstanding.items() if issue.deadline <= now]
        return self._ledger.overdue(now) + evaluated

    def _why_lost(self, group_id: str) -> str:
        return self._unread.pop(group_id, f"not back within {self._timeout_s:g} s")

    def retry_unread(self, group_id: str, reason: str) -> None:
        """Issue a group again after a pause, while it has attempts left, because its prompt could not be read."""
        if (issue := self._issue_of(group_id)) is not None:
            issue.deadline = time.monotonic() + _READ_AGAIN_S
            self._unread[group_id] = reason

    def wait_for_clients(self, group_id: str, missing: Mapping[str, str]) -> None:
        """Issue a training group again after a pause, because clients could not be reached; it costs no attempt.

        ``missing``: client -> the reason. The pause grows each time and is jittered.
        """
        if group_id not in self._ledger.outstanding:
            return
        self._absences = {name: one for name, one in self._absences.items() if name in self._ledger.outstanding}
        before = self._absences.get(group_id)
        pause_s = _ABSENT_FIRST_S if before is None else min(2 * before.pause_s, _ABSENT_LONGEST_S)
        self._absences[group_id] = _Absence(missing, pause_s)
        self._ledger.resample(group_id, time.monotonic() + random.uniform(0.5, 1.5) * pause_s)
        self._pausing.add(group_id)

    @property
    def missing(self) -> dict[str, str]:
        """Clients that groups wait for here -> the reason."""
        outstanding = self._ledger.outstanding
        absences = [one.missing for name, one in self._absences.items() if name in outstanding]
        return {client: reason for missing in absences for client, reason in missing.items()}

    def _extend_deadline(self, group_id: str) -> None:
        if (issue := self._issue_of(group_id)) is not None:
            issue.deadline = self.deadline()

    def reissue_all(self) -> None:
        """Send events and groups again after the queue server lost its content."""
        self._events.resend()
        self._alert(
            "queue_lost",
            "the queue server was flushed or restarted; all groups under way are issued again",
            groups=len(self._ledger.outstanding),
        )
        self._pausing.clear()
        self._dispatch_queue.add(*self._ledger.outstanding, *self._evaluations.outstanding)

    def replay(self, requested: Mapping[int, str]) -> None:
        """Issue the dropped groups again that an operator requests, by dead letter."""
        now = time.monotonic()
        self._replayed = {letter: at for letter, at in self._replayed.items() if now - at < _ANSWER_S}
        for letter, group_id in requested.items():
            if letter not in self._replayed:
                self._replayed[letter] = now
                issued = self._ledger.reopen(group_id, self.deadline())
                if issued:
                    self._dispatch_queue.add(group_id)
                self._events.add("replay", self._step(), {"letter": letter, "group_id": group_id, "issued": issued})

    def reject(self, group: ScoredGroup, reason: str) -> None:
        """Drop a taken group that must not be trained on, with an alert that carries its record as a dead letter."""
        self._ledger.reject_taken(group.number)
        record = group.record
        letter = DeadLetter(
            run=self._run,
            group_id=record.group_id,
            stage="trainer",
            stream="rewards",
            reason=reason,
            attempts=record.rollout.prompt.attempt + 1,
            record=record.model_dump_json(),
        )
        self._traces.ended(record.group_id, "dropped", reason)
        self._dropped(group.number, reason, letter, record.group_id)

    def _dropped(self, number: int, reason: str, letter: DeadLetter | None, group_id: str) -> None:
        """Report a dropped group by its row, and end the run where too many rows are bad."""
        row = self._prompts.ids[self._ledger.prompt_of(number)]
        self._alert("group_dropped", f"prompt {row!r}: {reason}", letter, group_id=group_id)
        bad = {self._ledger.prompt_of(dropped) for dropped in self._ledger.dropped_numbers}
        rows = len(self._prompts) + self._left_out
        if len(bad) + self._left_out > math.ceil(self._spec.max_bad_prompts * rows):
            self.failure = PromptsFailed(
                [self._prompts.ids[index] for index in sorted(bad)],
                rows,
                self._left_out,
                self._spec.max_bad_prompts,
                reason,
            )

    def _alert(self, name: AlertName, reason: str, letter: DeadLetter | None = None, **data: Any) -> None:
        reason = reason[:REASON_CHARACTERS]
        log.warning("alert", run=self._run, name=name, reason=reason)
        detail = {} if letter is None else {"group_id": letter.group_id, "letter": bounded(letter)}
        self._events.add("alert", self._step(), {"name": name, "reason": reason, **detail, **data})
