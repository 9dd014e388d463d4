"""The truth about groups: which were issued, which came back, which were applied, and what to do about the others.

Pure bookkeeping: no clock, no network. Groups are numbered in the order in which prompts are drawn; number n is prompt
``order(epoch)[n mod prompts]`` of epoch ``n div prompts``, so a number and the seed determine prompt and id. A group is

* *outstanding* from its issue until it comes back, is dropped, or is re-sampled (which keeps it outstanding),
* *ready* from then until a step takes it,
* *applied*, *skipped* (its rewards were all alike) or *dropped* afterwards: every number below the cursor that is
  neither outstanding nor ready. A dropped one can be issued again when an operator asks for it.

What comes back for a group that is not outstanding is a duplicate and changes nothing, so each group is applied once in
a lineage. The state is a checkpoint's: after a crash the groups that were under way are issued again.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import random
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from mor_core.errors import Invalid
from pydantic import BaseModel

T = TypeVar("T")


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, prompts: int) -> list[int]:
    """Order in which the prompts of an epoch are drawn."""
    order = list(range(prompts))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


class Verdict(enum.Enum):
    """What became of a group that came back."""

    accepted = "accepted"
    duplicate = "duplicate"
    """Its number is not outstanding: applied before, skipped, dropped, or of another lineage."""
    stale = "stale"
    """Sampled by a version too old or of a lost lineage; to be sampled again."""


@dataclass
class Issue:
    """A group under way."""

    number: int
    attempt: int = 0
    """How often it was issued before."""
    deadline: float = 0.0
    """When it counts as lost, in the caller's clock."""


class LedgerState(BaseModel):
    """What a checkpoint keeps."""

    prompts: int
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


@dataclass
class Ledger(Generic[T]):
    """Groups of one run. ``T`` is what a group brings back."""

    run: str
    prompts: int
    """Number of prompts in the file."""
    seed: int
    max_staleness: int
    max_attempts: int
    """Issues of one group after which it is dropped."""
    cursor: int = 0
    outstanding: dict[str, Issue] = field(default_factory=dict)
    ready: dict[int, tuple[T, int, int]] = field(default_factory=dict)
    """By number: what came back, the version that sampled it, and the attempts."""
    applied: int = 0
    dropped: int = 0
    retried: int = 0
    skipped: int = 0
    lost: set[int] = field(default_factory=set)
    """Numbers of the dropped groups, which an operator may ask for again."""
    versions: list[int] = field(default_factory=list)
    """Versions of this lineage, oldest first, as far back as staleness reaches; the last is the policy's own."""

    # --- identity -----------------------------------------------------------------------------------------------

    def prompt_of(self, number: int) -> tuple[int, int]:
        """Epoch and prompt index of a group."""
        epoch, position = divmod(number, self.prompts)
        return epoch, _order(self.seed, epoch, self.prompts)[position]

    def group_id(self, number: int) -> str:
        epoch, index = self.prompt_of(number)
        return hashlib.sha256(f"{self.run}/{epoch}/{index}".encode()).hexdigest()[:32]

    # --- versions -----------------------------------------------------------------------------------------------

    def published(self, version: int) -> None:
        """The policy is this version from now on."""
        self.versions = [*self.versions, version][-(self.max_staleness + 1) :]

    def staleness(self, version: int) -> int | None:
        """Updates since ``version``; ``None`` when it is older than the bound or of a lost lineage."""
        return len(self.versions) - 1 - self.versions.index(version) if version in self.versions else None

    # --- issue --------------------------------------------------------------------------------------------------

    def room(self, groups_per_step: int, held: int = 0, steps_left: int | None = None) -> int:
        """How many new groups may be issued: as many as the staleness bound and the end of the run let be applied.

        ``held``: groups that the step in progress has already taken and keeps. ``steps_left``: that one included.
        """
        steps = 1 + self.max_staleness
        ahead = groups_per_step * (steps if steps_left is None else min(steps, steps_left))
        return max(0, ahead - held - len(self.outstanding) - len(self.ready))

    def issue(self, count: int, deadline: float) -> list[Issue]:
        """The next ``count`` groups."""
        issued = [Issue(self.cursor + offset, 0, deadline) for offset in range(count)]
        self.cursor += count
        self.outstanding |= {self.group_id(issue.number): issue for issue in issued}
        return issued

    def again(self, group_id: str, deadline: float) -> Issue | None:
        """Issue an outstanding group once more; ``None``, and the group is dropped, after ``max_attempts``."""
        issue = self.outstanding[group_id]
        if issue.attempt + 1 >= self.max_attempts:
            self.drop(group_id)
            return None
        issue.attempt += 1
        issue.deadline = deadline
        self.retried += 1
        return issue

    def drop(self, group_id: str) -> None:
        """Give an outstanding group up."""
        self.lost.add(self.outstanding.pop(group_id).number)
        self.dropped += 1

    def reopen(self, group_id: str, deadline: float) -> bool:
        """Issue a dropped group once more, with all its attempts; whether it was dropped."""
        number = next((number for number in self.lost if self.group_id(number) == group_id), None)
        if number is None:
            return False
        self.lost.remove(number)
        self.dropped -= 1
        self.retried += 1
        self.outstanding[group_id] = Issue(number, 0, deadline)
        return True

    def overdue(self, now: float) -> list[str]:
        """Outstanding groups whose deadline has passed."""
        return [group_id for group_id, issue in self.outstanding.items() if issue.deadline <= now]

    def resample(self, group_id: str, deadline: float) -> Issue:
        """A stale group is sampled whole again; that is no failure of the group, its attempts stay."""
        issue = self.outstanding[group_id]
        issue.deadline = deadline
        self.retried += 1
        return issue

    # --- return -------------------------------------------------------------------------------------------------

    def receive(self, group_id: str, version: int, brought: T) -> Verdict:
        """A group came back, sampled by ``version``."""
        issue = self.outstanding.get(group_id)
        if issue is None:
            return Verdict.duplicate
        if self.staleness(version) is None:
            return Verdict.stale
        del self.outstanding[group_id]
        self.ready[issue.number] = (brought, version, issue.attempt)
        return Verdict.accepted

    def take(self, count: int, deadline: float) -> tuple[list[tuple[int, T, int]], list[Issue]]:
        """``count`` ready groups in the order of their numbers as (number, what came back, staleness), or none.

        Groups that went stale while they waited become outstanding again; they are the second value.
        """
        again = []
        for number, (_, version, attempt) in list(self.ready.items()):
            if self.staleness(version) is None:
                del self.ready[number]
                issue = Issue(number, attempt, deadline)
                self.outstanding[self.group_id(number)] = issue
                self.retried += 1
                again.append(issue)
        if len(self.ready) < count:
            return [], again
        taken = []
        for number in sorted(self.ready)[:count]:
            brought, version, _ = self.ready.pop(number)
            staleness = self.staleness(version)
            assert staleness is not None
            taken.append((number, brought, staleness))
        self.applied += count
        return taken, again

    def put_back(self, number: int, brought: T, version: int, attempt: int) -> None:
        """A group that a step took was not trained on: it is ready again."""
        self.ready[number] = (brought, version, attempt)
        self.applied -= 1

    def reject_taken(self, number: int) -> None:
        """A group that a step took cannot be trained on after all: it counts as dropped."""
        self.lost.add(number)
        self.applied -= 1
        self.dropped += 1

    def skip_taken(self, count: int) -> None:
        """``count`` groups that a step took have nothing to teach: they are settled without a gradient."""
        self.applied -= count
        self.skipped += count

    # --- checkpoint ---------------------------------------------------------------------------------------------

    def state(self) -> LedgerState:
        under_way = {issue.number: issue.attempt for issue in self.outstanding.values()}
        under_way |= {number: attempt for number, (_, _, attempt) in self.ready.items()}
        return LedgerState(
            prompts=self.prompts,
            cursor=self.cursor,
            under_way=dict(sorted(under_way.items())),
            applied=self.applied,
            dropped=self.dropped,
            retried=self.retried,
            skipped=self.skipped,
            lost=tuple(sorted(self.lost)),
            versions=self.versions,
        )

    def restore(self, state: LedgerState, deadline: float) -> None:
        """Continue from a checkpoint: everything that was under way is outstanding, to be issued again.

        Raises:
            Invalid: the prompts file has another number of rows, so that numbers would mean other prompts.
        """
        if state.prompts != self.prompts:
            raise Invalid(
                f"the prompts file has {self.prompts} rows, the checkpoint was written with {state.prompts}; "
                "restore the file, or create a new run from the checkpoint's model"
            )
        self.cursor, self.versions = state.cursor, []
        self.applied, self.dropped = state.applied, state.dropped
        self.retried, self.skipped = state.retried, state.skipped
        self.ready, self.lost = {}, set(state.lost)
        self.outstanding = {
            self.group_id(number): Issue(number, attempt, deadline) for number, attempt in state.under_way.items()
        }
