"""What a deterministic run was trained on, step by step, and where: after a crash it trains on the same again.

``{run folder}/record/step-00000012.json`` holds a step's groups with tokens and rewards, and the ledger as it then
stood. It is durable before the step is computed, so whatever changed the policy can be had again; sampling and scoring
need not be reproducible. ``conditions.json`` holds what else the bits depend on. Nothing here is deleted: the record of
a whole run, copied into the folder of a new one, computes it again without engine and clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.wire import RewardRecord, TokenBlock
from pydantic import BaseModel, ValidationError

from mor_trainer import atomic
from mor_trainer.config import WorkerSettings
from mor_trainer.groups.ledger import LedgerState
from mor_trainer.groups.scored import ScoredGroup, Taken
from mor_trainer.ranks import Ranks

_CONDITIONS = "conditions.json"


class RecordedGroup(BaseModel):
    """A group as the step took it."""

    number: int
    staleness: int
    record: RewardRecord
    tokens: TokenBlock

    @classmethod
    def of(cls, taken: Taken) -> RecordedGroup:
        return cls(number=taken.number, staleness=taken.staleness, record=taken.group.record, tokens=taken.group.tokens)

    def taken(self) -> Taken:
        return Taken(self.number, ScoredGroup(self.record, self.tokens), self.staleness)


class StepRecord(BaseModel):
    """All that a step was computed from, apart from the policy before it."""

    taken: list[RecordedGroup]
    skipped: list[RecordedGroup]
    ledger: LedgerState
    """After the step took its groups."""


class Conditions(BaseModel):
    """What the last bits depend on and the run does not say."""

    ranks: int
    torch_threads: int
    device: str
    precision: str
    torch: str = metadata.version("torch")
    transformers: str = metadata.version("transformers")

    @classmethod
    def of(cls, settings: WorkerSettings, ranks: Ranks) -> Conditions:
        """Those of this process."""
        return cls(
            ranks=ranks.size,
            torch_threads=settings.torch_threads,
            device=ranks.device.type,
            precision=settings.precision,
        )


class Record:
    """The record of one run."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder / "record"
        self._gates: dict[str, int] | None = None

    def hold_to(self, conditions: Conditions) -> None:
        """Keep the conditions of the first attempt.

        Raises:
            Invalid: these are others.
        """
        path = self._folder / _CONDITIONS
        if not path.exists():
            atomic.write(path, conditions.model_dump_json(indent=1).encode())
            return
        begun = Conditions.model_validate_json(path.read_bytes())
        now = conditions.model_dump()
        changed = [
            f"{name}={value} (now {now[name]})" for name, value in begun.model_dump().items() if value != now[name]
        ]
        if changed:
            raise Invalid(
                f"this deterministic run began with {', '.join(changed)}, and its bits depend on it; start the worker "
                "as it was, or create the run anew"
            )

    def write(self, step: int, taken: Sequence[Taken], skipped: Sequence[Taken], ledger: LedgerState) -> None:
        """Keep what ``step`` will be computed from; it is on the disk when this returns."""
        record = StepRecord(
            taken=[RecordedGroup.of(item) for item in taken],
            skipped=[RecordedGroup.of(item) for item in skipped],
            ledger=ledger,
        )
        atomic.write(self._path(step), record.model_dump_json(by_alias=True).encode())

    def read(self, step: int) -> StepRecord | None:
        """What ``step`` was computed from in an earlier attempt.

        Raises:
            Invalid: it cannot be read, or is missing while that of a later step is there.
        """
        path = self._path(step)
        if not path.exists():
            if any(later.name > path.name for later in self._folder.glob("step-*.json")):
                raise Invalid(f"record {path} is missing and later steps are recorded; restore it from a backup")
            return None
        try:
            return StepRecord.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise Invalid(f"record {path}: {error}; restore it from a backup") from error

    def check_gate(self, record: RewardRecord) -> None:
        """One gate version scores the whole run.

        Raises:
            Invalid: another one scored ``record`` than the first group of the run.
        """
        if self._gates is None:
            first = self.read(1)
            self._gates = _gates(first.taken[0].record if first else record)
        found = _gates(record)
        if found != self._gates:
            raise Invalid(
                f"group {record.group_id} was scored by gate versions {found}, this deterministic run is pinned to "
                f"{self._gates}; put those in force again, leave the objective as it is, and resume"
            )

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.json"


def unfit(record: RewardRecord) -> str | None:
    """Why a group may not be trained on: rewards must not depend on who happened to answer."""
    silent = [f"{score.client} ({score.status})" for score in record.clients if score.status in _FAILED]
    return f"not scored by all clients, as a deterministic run wants it: {', '.join(silent)}" if silent else None


def _gates(record: RewardRecord) -> dict[str, int]:
    """Gate version by objective."""
    return {share.name: share.gate_version for share in record.objectives} or {"": record.gate_version}


_FAILED = ("unscorable", "error", "timeout", "circuit_open")
