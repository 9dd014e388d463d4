"""Ledger of groups: which were issued, came back and were applied, and what happens to the others.

Pure bookkeeping: no clock, no network. Groups are numbered in the order in which prompts are drawn, so the number and
the run determine prompt and id (``groups/prompt_order.py``). A group is

* *outstanding* from its issue until it comes back, is dropped, or is sampled again (which keeps it outstanding),
* *ready* from then until a step takes it,
* *applied*, *skipped* (all its rewards were alike) or *dropped* afterwards: every number below the cursor that is
  neither outstanding nor ready. An operator can have a dropped group issued again.

A result for a group that is not outstanding is a duplicate and changes nothing, so each group is applied once in a
lineage. The state is part of a checkpoint: after a crash the groups that were under way are issued again.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mor_core.errors import Invalid
from pydantic import BaseModel, Field

from mor_trainer.groups.prompt_order import PromptOrder

T = TypeVar("T")


class Receipt(enum.Enum):
    """Outcome of a group's return."""

    accepted = "accepted"
    duplicate = "duplicate"
    """Its number is not outstanding: applied before, skipped, dropped, or of another lineage."""
    stale = "stale"
    """Its version is too old or of a lost lineage; it must be sampled again."""


@dataclass
class Issue:
    """An outstanding group."""

    number: int
    attempt: int = 0
    """Number of earlier issues."""
    deadline: float = 0.0
    """Time after which it counts as lost, on the caller's clock, seconds."""


class LedgerState(BaseModel):
    """The part of a checkpoint that restores the ledger."""

    prompts: int
    """Rows of all sources."""
    sources: dict[str, int] = Field(default_factory=dict)
    """Rows of each source; empty for a run with one file."""
    cursor: int
    under_way: dict[int, int]
    """Attempts by number of the groups that are neither applied nor skipped nor dropped."""
    applied: int
    dropped: int
    retried: int
    skipped: int = 0
    lost: tuple[int, ...] = ()
    """Numbers of the dropped groups."""
    versions: list[int]


@dataclass(frozen=True)
class GroupCounts:
    """Totals of a run's groups at one moment."""

    drawn: int
    """Groups that were ever issued."""
    applied: int
    skipped: int
    dropped: int
    retried: int
    duplicate: int
    """Results for groups that were not outstanding."""


@dataclass
class Ledger(Generic[T]):
    """Ledger of one run. ``T`` is the type of a returned group."""

    run: str
    order: PromptOrder
    max_staleness: int
    max_attempts: int
    """Number of issues after which a group is dropped."""
    cursor: int = 0
    outstanding: dict[str, Issue] = field(default_factory=dict)
    ready: dict[int, tuple[T, int, int]] = field(default_factory=dict)
    """By number: the returned group, the version that sampled it, and the attempts."""
    applied: int = 0
    dropped: int = 0
    retried: int = 0
    skipped: int = 0
    dropped_numbers: set[int] = field(default_factory=set)
    """Numbers of the dropped groups, which an operator may have issued again."""
    versions: list[int] = field(default_factory=list)
    """The newest versions of this lineage, oldest first, ``max_staleness + 1`` at most; the last is the policy."""
    renumbered: dict[int, int] = field(default_factory=dict)
    """Versions that were published again without a change -> the number under which ``versions`` has them."""

    # --- identity -----------------------------------------------------------------------------------------------

    def prompt_of(self, number: int) -> int:
        """Return the index of a group's prompt."""
        return self.order.draw(number).row

    def group_id(self, number: int) -> str:
        _, epoch, row = self.order.draw(number)
        return hashlib.sha256(f"{self.run}/{epoch}/{row}".encode()).hexdigest()[:32]

    # --- versions -----------------------------------------------------------------------------------------------

    def advance_version(self, version: int) -> None:
        """Make ``version`` the policy's version; it need not be published yet."""
        self.versions = [*self.versions, version][-(self.max_staleness + 1) :]
        self.renumbered = {older: newer for older, newer in self.renumbered.items() if newer in self.versions}

    def renumber_version(self, version: int) -> None:
        """Make ``version`` another number of the policy's version, which did not change."""
        former = self.versions[-1]
        same = [former, *(older for older, newer in self.renumbered.items() if newer == former)]
        self.renumbered |= dict.fromkeys(same, version)
        self.versions[-1] = version

    def is_behind(self, version: int) -> bool:
        """Return whether ``version`` is newer than the policy's, and so of a lost lineage."""
        return bool(self.versions) and version > self.versions[-1]

    def staleness(self, version: int) -> int | None:
        """Count the updates since ``version``; ``None`` when it is older than the bound or of a lost lineage."""
        version = self.renumbered.get(version, version)
        return len(self.versions) - 1 - self.versions.index(version) if version in self.versions else None

    # --- issue --------------------------------------------------------------------------------------------------

    def room(self, groups_per_step: int, held: int = 0, steps_left: int | None = None) -> int:
        """Return how many new groups may be issued, so that all can be applied within the staleness bound and the run.

        ``held``: groups that the step in progress has taken and keeps. ``steps_left`` includes that step.
        """
        steps = 1 + self.max_staleness
        ahead = groups_per_step * (steps if steps_left is None else min(steps, steps_left))
        return max(0, ahead - held - len(self.outstanding) - len(self.ready))

    def issue(self, count: int, deadline: float) -> list[Issue]:
        """Issue the next ``count`` groups."""
        issued = [Issue(self.cursor + offset, 0, deadline) for offset in range(count)]
        self.cursor += count
        self.outstanding |= {self.group_id(issue.number): issue for issue in issued}
        return issued

    def reissue(self, group_id: str, deadline: float) -> Issue | None:
        """Issue an outstanding group once more; after ``max_attempts`` drop it and return ``None``."""
        issue = self.outstanding[group_id]
        if issue.attempt + 1 >= self.max_attempts:
            self.drop(group_id)
            return None
        issue.attempt += 1
        issue.deadline = deadline
        self.retried += 1
        return issue

    def drop(self, group_id: str) -> None:
        """Drop an outstanding group."""
        self.dropped_numbers.add(self.outstanding.pop(group_id).number)
        self.dropped += 1

    def reopen(self, group_id: str, deadline: float) -> bool:
        """Issue a dropped group once more, with all its attempts. Return whether it was dropped."""
        number = next((number for number in self.dropped_numbers if self.group_id(number) == group_id), None)
        if number is None:
            return False
        self.dropped_numbers.remove(number)
        self.dropped -= 1
        self.retried += 1
        self.outstanding[group_id] = Issue(number, 0, deadline)
        return True

    def overdue(self, now: float) -> list[str]:
        """Return the outstanding groups whose deadline has passed."""
        return [group_id for group_id, issue in self.outstanding.items() if issue.deadline <= now]

    def resample(self, group_id: str, deadline: float) -> Issue:
        """Issue a stale group once more without counting an attempt, because the group did not fail."""
        issue = self.outstanding[group_id]
        issue.deadline = deadline
        self.retried += 1
        return issue

    # --- return -------------------------------------------------------------------------------------------------

    def receive(self, group_id: str, version: int, returned: T) -> Receipt:
        """Record the return of a group that ``version`` sampled."""
        issue = self.outstanding.get(group_id)
        if issue is None:
            return Receipt.duplicate
        if self.staleness(version) is None:
            return Receipt.stale
        del self.outstanding[group_id]
        self.ready[issue.number] = (returned, version, issue.attempt)
        return Receipt.accepted

    def take(self, count: int, deadline: float) -> tuple[list[tuple[int, T, int]], list[Issue]]:
        """Take ``count`` ready groups by number, each as (number, returned group, staleness), or none.

        Groups that became stale while they waited are outstanding again; they are the second value.
        """
        stale = []
        for number, (_, version, attempt) in list(self.ready.items()):
            if self.staleness(version) is None:
                del self.ready[number]
                issue = Issue(number, attempt, deadline)
                self.outstanding[self.group_id(number)] = issue
                self.retried += 1
                stale.append(issue)
        if len(self.ready) < count:
            return [], stale
        taken = []
        for number in sorted(self.ready)[:count]:
            returned, version, _ = self.ready.pop(number)
            staleness = self.staleness(version)
            assert staleness is not None
            taken.append((number, returned, staleness))
        self.applied += count
        return taken, stale

    def put_back(self, number: int, returned: T, version: int, attempt: int) -> None:
        """Make a group ready again that a step took and did not train on."""
        self.ready[number] = (returned, version, attempt)
        self.applied -= 1

    def reject_taken(self, number: int) -> None:
        """Count a group as dropped that a step took and cannot train on."""
        self.dropped_numbers.add(number)
        self.applied -= 1
        self.dropped += 1

    def skip_taken(self, count: int) -> None:
        """Count ``count`` groups as skipped that a step took and whose rewards carry no signal."""
        self.applied -= count
        self.skipped += count

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def counts(self, duplicate: int) -> GroupCounts:
        """Return the totals of the run. ``duplicate``: results for groups that were not outstanding."""
        return GroupCounts(
            drawn=self.cursor,
            applied=self.applied,
            skipped=self.skipped,
            dropped=self.dropped,
            retried=self.retried,
            duplicate=duplicate,
        )

    def state(self) -> LedgerState:
        """Return the state for a checkpoint."""
        under_way = {issue.number: issue.attempt for issue in self.outstanding.values()}
        under_way |= {number: attempt for number, (_, _, attempt) in self.ready.items()}
        return LedgerState(
            prompts=self.order.rows,
            sources=self.order.rows_by_source,
            cursor=self.cursor,
            under_way=dict(sorted(under_way.items())),
            applied=self.applied,
            dropped=self.dropped,
            retried=self.retried,
            skipped=self.skipped,
            lost=tuple(sorted(self.dropped_numbers)),
            versions=self.versions,
        )

    def restore(self, state: LedgerState, deadline: float) -> None:
        """Continue from a checkpoint: all groups that were under way are outstanding and must be issued again.

        Raises:
            Invalid: the prompts are not those of the checkpoint, so numbers would mean others.
        """
        self._check_prompts(state)
        self.cursor, self.versions, self.renumbered = state.cursor, [], {}
        self.applied, self.dropped = state.applied, state.dropped
        self.retried, self.skipped = state.retried, state.skipped
        self.ready, self.dropped_numbers = {}, set(state.lost)
        self.outstanding = {
            self.group_id(number): Issue(number, attempt, deadline) for number, attempt in state.under_way.items()
        }

    def _check_prompts(self, state: LedgerState) -> None:
        remedy = "restore the file, or create a new run from the checkpoint's model"
        rows = self.order.rows_by_source
        if list(state.sources) != list(rows):
            raise Invalid(
                f"the run has the sources {list(rows)}, the checkpoint was written with {list(state.sources)}; create "
                "a new run from the checkpoint's model"
            )
        for name, count in state.sources.items():
            if count != rows[name]:
                raise Invalid(
                    f"source {name!r} has {rows[name]} rows, the checkpoint was written with {count}; {remedy}"
                )
        if state.prompts != (count := self.order.rows):
            raise Invalid(
                f"the prompts file has {count} rows, the checkpoint was written with {state.prompts}; {remedy}"
            )
