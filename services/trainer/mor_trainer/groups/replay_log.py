"""Replay log of a deterministic run: the groups that each step was trained on, and the conditions.

After a crash the run trains on the same groups again. ``{run folder}/record/step-00000012.json`` holds the groups of a
step with tokens and rewards, and the ledger after the step took them. The file is durable before the step is computed,
so everything that changed the policy can be repeated; sampling and scoring need not be reproducible.
``conditions.json`` and ``scoring.json`` have everything else that the bits depend on. Nothing here is deleted: the log
of a whole run, copied into the folder of a new one, computes it again without engine and clients.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.plain_files import read_plain_file
from mor_core.sealed_json import seal, unseal
from mor_core.wire import RewardRecord
from pydantic import BaseModel, ValidationError

from mor_trainer.config import WorkerSettings
from mor_trainer.groups.ledger import LedgerState
from mor_trainer.groups.scored_group import ScoredGroup
from mor_trainer.ranks import Ranks
from mor_trainer.run_files import REPLAY_LOG

_CONDITIONS = "conditions.json"
_LARGEST_RECORD = 1 << 30
"""Bytes; a step has the tokens and scores of its groups."""


class ReplayedStep(BaseModel):
    """Everything that a step is computed from, apart from the policy before it."""

    taken: list[ScoredGroup]
    skipped: list[ScoredGroup]
    ledger: LedgerState
    """After the step took its groups."""


class ReplayConditions(BaseModel):
    """Conditions that the last bits depend on and that the run's specification does not fix."""

    ranks: int
    torch_threads: int
    device: str
    precision: str
    torch: str = metadata.version("torch")
    transformers: str = metadata.version("transformers")

    @classmethod
    def of(cls, settings: WorkerSettings, ranks: Ranks) -> ReplayConditions:
        """Return the conditions of this process."""
        return cls(
            ranks=ranks.size,
            torch_threads=settings.torch_threads,
            device=ranks.device.type,
            precision=settings.precision,
        )


class ReplayLog:
    """Replay log of one run."""

    def __init__(self, run_folder: Path, staging: Path | None = None) -> None:
        self._staging = staging
        self._folder = run_folder / REPLAY_LOG

    def pin_conditions(self, conditions: ReplayConditions) -> None:
        """Write the conditions of the first attempt, and compare those of a later one with them.

        Raises:
            Invalid: ``conditions`` differ from those of the first attempt.
        """
        path = self._folder / _CONDITIONS
        if not path.exists():
            atomic.write(path, seal(conditions.model_dump_json(indent=1).encode()), staging=self._staging)
            return
        try:
            content = unseal(read_plain_file(path, _LARGEST_RECORD))
            begun = ReplayConditions.model_validate_json(content, extra="ignore")
        except (ValidationError, Invalid) as error:
            raise Invalid(f"record {path}: {describe_failure(error)}; restore it from a backup") from error
        now = conditions.model_dump()
        changed = [
            f"{name}={value} (now {now[name]})" for name, value in begun.model_dump().items() if value != now[name]
        ]
        if changed:
            raise Invalid(
                f"this deterministic run began with {', '.join(changed)}, and its bits depend on it; start the worker "
                "as it was, or create a new run"
            )

    def write(
        self, step: int, taken: Sequence[ScoredGroup], skipped: Sequence[ScoredGroup], ledger: LedgerState
    ) -> None:
        """Write the input of ``step`` before it is computed; it is on the disk when this returns."""
        replayed = ReplayedStep(taken=list(taken), skipped=list(skipped), ledger=ledger)
        atomic.write(self._path(step), seal(replayed.model_dump_json(by_alias=True).encode()), staging=self._staging)

    def read(self, step: int) -> ReplayedStep | None:
        """Read the input of ``step`` in an earlier attempt, if there was one.

        Raises:
            Invalid: the file is not valid, or is missing while that of a later step exists.
        """
        path = self._path(step)
        if not path.exists():
            if any(later.name > path.name for later in self._folder.glob("step-*.json")):
                raise Invalid(f"record {path} is missing and later steps are recorded; restore it from a backup")
            return None
        try:
            return ReplayedStep.model_validate_json(unseal(read_plain_file(path, _LARGEST_RECORD)), extra="ignore")
        except (ValidationError, Invalid) as error:
            raise Invalid(f"record {path}: {describe_failure(error)}; restore it from a backup") from error

    def first_record(self) -> RewardRecord | None:
        """Return the first group of the run, where step 1 is recorded.

        Raises:
            Invalid: its file is not valid.
        """
        first = self.read(1)
        return None if first is None else first.taken[0].record

    def _path(self, step: int) -> Path:
        return self._folder / f"step-{step:08d}.json"


def absent_clients(record: RewardRecord) -> dict[str, str]:
    """Return the clients that could not be reached for a group, each with the reason. A former router left them out."""
    away = [score for score in record.clients if score.status in _AWAY]
    return {score.client: f"{score.status}, {score.detail or 'no reason given'}" for score in away}


def unfit_reason(record: RewardRecord) -> str | None:
    """Return why a deterministic run may not train on a group, if so: a client failed to score it."""
    failed = [f"{score.client} ({score.status})" for score in record.clients if score.status in _FAILED]
    if not failed:
        return None
    return f"not scored by {', '.join(failed)}; a deterministic run needs the scores of all clients"


_AWAY = ("timeout", "circuit_open")
_FAILED = ("unscorable", "error", *_AWAY)
