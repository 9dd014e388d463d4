"""Scoring conditions of a deterministic run: the clients that score it, their models, and the gate version.

They are pinned by the run's first group, in ``{run folder}/record/scoring.json``. A group that other clients scored has
other rewards, however good they are: it waits until the pinned ones score it again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.plain_files import read_plain_file
from mor_core.sealed_json import seal, unseal
from mor_core.wire import LESS_TRUSTED, NOT_SENT, ClientScore, ModelRef, RewardRecord
from pydantic import BaseModel, ValidationError

from mor_trainer.run_files import REPLAY_LOG

_LARGEST_FILE = 16 << 20
"""Bytes; a client has a few hundred."""

_ELSEWHERE = (LESS_TRUSTED, NOT_SENT)
"""Beginnings of the reasons of clients that have weight in other groups."""

log = structlog.get_logger(__name__)


class ScoringConditions(BaseModel):
    """Clients and gates that score a run."""

    gates: dict[str, int]
    """Objective -> gate version; the empty name where the rewards have no objective."""
    clients: dict[str, ModelRef | None]
    """Client with weight -> the model that it serves; null while it has scored no group yet."""

    @classmethod
    def of(cls, record: RewardRecord) -> ScoringConditions:
        """Return the conditions of one scored group."""
        return cls(gates=_gates(record), clients={score.client: score.model for score in _with_weight(record)})


class PinnedScoring:
    """Pinned scoring conditions of one run. One thread pins them, any may compare."""

    def __init__(
        self, run_folder: Path, first_record: Callable[[], RewardRecord | None], staging: Path | None = None
    ) -> None:
        """Initialise the conditions from their file.

        ``first_record`` returns the first group of the replay log, which pins what an earlier version did not write.
        ``staging``: folder through which the file is written.

        Raises:
            Invalid: the file is not valid.
        """
        self._path = run_folder / REPLAY_LOG / "scoring.json"
        self._staging = staging
        self._pinned = self._read()
        if self._pinned is None and (first := first_record()) is not None:
            self._pin(ScoringConditions.of(first))

    def changed_clients(self, record: RewardRecord) -> dict[str, str]:
        """Return the clients because of which a group was scored under other conditions, each with the reason.

        The first group pins the conditions.
        """
        if self._pinned is None:
            self._pin(ScoringConditions.of(record))
            return {}
        pinned = self._pinned.clients
        lines = {score.client: score for score in record.clients}
        counted = {score.client: score.model for score in _with_weight(record)}
        changed = {name: _absence(lines.get(name)) for name in pinned.keys() - counted.keys()}
        for name, model in counted.items():
            before = pinned.get(name)
            if name not in pinned:
                changed[name] = (
                    "scores with weight, and did not when this deterministic run began; pause it until the run ends "
                    "('mor client pause')"
                )
            elif before is not None and model is not None and model != before:
                changed[name] = (
                    f"serves {model.name} {model.version}, this deterministic run began with {before.name} "
                    f"{before.version}; have it serve that again, or create a new run"
                )
        if not changed and (
            known := {name: model for name, model in counted.items() if pinned[name] is None and model}
        ):
            self._pin(self._pinned.model_copy(update={"clients": {**pinned, **known}}))
        return changed

    def check_gate(self, record: RewardRecord) -> None:
        """Check that the pinned gate version scored a group.

        Raises:
            Invalid: another one did.
        """
        found = _gates(record)
        if self._pinned is not None and found != self._pinned.gates:
            raise Invalid(
                f"group {record.group_id} was scored by gate versions {found}, this deterministic run is pinned to "
                f"{self._pinned.gates}; activate those again, leave the objective unchanged, and resume"
            )

    def _read(self) -> ScoringConditions | None:
        if not self._path.exists():
            return None
        try:
            content = unseal(read_plain_file(self._path, _LARGEST_FILE))
            return ScoringConditions.model_validate_json(content, extra="ignore")
        except (ValidationError, Invalid) as error:
            raise Invalid(f"record {self._path}: {describe_failure(error)}; restore it from a backup") from error

    def _pin(self, conditions: ScoringConditions) -> None:
        self._pinned = conditions
        try:
            atomic.write(self._path, seal(conditions.model_dump_json(indent=1).encode()), staging=self._staging)
        except OSError as error:  # the replay log's first group pins them at the next attempt
            log.warning("the scoring conditions could not be written", error=describe_failure(error))


def _with_weight(record: RewardRecord) -> list[ClientScore]:
    """Return the clients that have weight for the run's groups, whether this group needed them or not."""
    return [
        score
        for score in record.clients
        if score.status == "ok" or (score.status == "not_asked" and (score.detail or "").startswith(_ELSEWHERE))
    ]


def _absence(score: ClientScore | None) -> str:
    """Explain why a pinned client did not count."""
    if score is None:
        return "was removed; enrol it again, or create a new run"
    return f"does not count: {score.detail or score.status}"


def _gates(record: RewardRecord) -> dict[str, int]:
    """Return the gate version of each objective."""
    return {share.name: share.gate_version for share in record.objectives} or {"": record.gate_version}
