"""Answers of run control about what runs keep on its disk: sizes, limits, what a deletion frees, exported models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from mor_core.patterns import matching
from mor_core.runs import RunState
from mor_core.wire import Count, Documented, Sha256

_RUN: dict[str, Any] = {
    "run": "three-domains-1a2b3c",
    "state": "stopped",
    "archived": False,
    "finished_at": 1767225600.0,
    "checkpoints": 2415919104,
    "weights": 1207959552,
    "replay_log": 0,
    "exports": 0,
    "final": 0,
    "other": 40960,
    "files": 31,
    "expires_at": 1769817600.0,
}


class RunStorage(Documented):
    """Files of a run. All sizes are in bytes."""

    model_config = ConfigDict(json_schema_extra={"examples": [_RUN]})

    run: str
    state: RunState | None
    """Null where the run's row cannot be read."""
    archived: bool
    finished_at: float | None
    """Unix time at which the run ended, seconds; null for a run that is not over."""
    checkpoints: Count
    weights: Count
    """Published weights versions."""
    replay_log: Count
    """Groups of a deterministic run."""
    exports: Count
    """Models that were exported from checkpoints."""
    final: Count
    """Aligned model of a finished run, which is kept until the run is deleted."""
    other: Count
    """Results of the check of the prompts, and parts of files that a killed worker left."""
    files: Count
    """Number of all files."""
    expires_at: float | None = None
    """Unix time, seconds, at which all but the final model is deleted by age; null for a run that is not over, and
    where nothing is left to delete."""

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return self.checkpoints + self.weights + self.replay_log + self.exports + self.final + self.other


class RetentionLimits(Documented):
    """Settings that bound what ended runs keep."""

    ended_run_days: float
    """``MOR_ENDED_RUN_DAYS``."""
    ended_runs_kept: int
    """``MOR_ENDED_RUNS_KEPT``."""
    ended_runs_bytes: int
    """``MOR_ENDED_RUNS_BYTES``."""
    ended_runs_share: float
    """``MOR_ENDED_RUNS_SHARE``: share of the disk."""
    history_days: float
    """``MOR_HISTORY_DAYS``."""


class StorageReport(Documented):
    """Files of all runs, and the limits of what ended runs keep."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "disk_bytes": 1099511627776,
                    "free_bytes": 549755813888,
                    "history_bytes": 52428800,
                    "limits": {
                        "ended_run_days": 30.0,
                        "ended_runs_kept": 100,
                        "ended_runs_bytes": 536870912000,
                        "ended_runs_share": 0.5,
                        "history_days": 180.0,
                    },
                    "runs": [_RUN],
                    "deleting": [],
                }
            ]
        }
    )

    disk_bytes: Count
    """Size of the disk of the runs."""
    free_bytes: Count
    history_bytes: Count | None
    """Size of the history's SQLite file; null where PostgreSQL has the history."""
    limits: RetentionLimits
    runs: tuple[RunStorage, ...]
    """Largest first."""
    deleting: tuple[str, ...]
    """Runs that are deleted and whose files or history are not all gone yet."""


class Freed(Documented):
    """Space that a deletion frees."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"run": "three-domains-1a2b3c", "bytes": 3623919616, "files": 31}]}
    )

    run: str
    bytes: Count
    """Size of the files."""
    files: Count
    """Number of the files."""
    dry_run: bool = False
    """True if nothing was deleted."""


class PruneRequest(Documented):
    """Body of ``POST /v1/runs/{run}/prune``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"keep_checkpoints": 1}]})

    keep_checkpoints: Annotated[int, Field(ge=0, le=1000)] = 0
    """Newest checkpoints that stay, and with them the replay log, so that the run can be resumed. 0: none, so that it
    cannot."""
    dry_run: bool = False
    """True deletes nothing and returns what would be freed."""


Source = Annotated[str, matching(r"^(final|latest|best|[0-9]{1,9})$", "final, latest, best, or the number of a step")]


class ExportRequest(Documented):
    """Body of ``POST /v1/runs/{run}/exports``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"checkpoint": "best"}]})

    checkpoint: Source | None = None
    """``final``: the aligned model of a finished run; ``latest``: the newest checkpoint; ``best``: the kept checkpoint
    that has the best evaluation by the latest gate; a number: the checkpoint of that step. Null: the final model where
    there is one, or the newest checkpoint."""
    adapter: bool = False
    """True exports the trained adapter alone, for PEFT; false merges it into the model."""


class ExportedFile(Documented):
    """File of an exported model."""

    name: Annotated[str, Field(max_length=500, pattern=r"^[^/\\\x00-\x1f][^\\\x00-\x1f]*$")]
    """Path within the model's folder."""
    bytes: Count
    sha256: Sha256


_PART = r"[a-z0-9]+([._-]+[a-z0-9]+)*"
DESTINATION_FORMS = {
    "hub": r"hf://(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})",
    "oci": rf"oci://(?P<host>[a-z0-9.-]+(:[0-9]{{1,5}})?)/(?P<repository>{_PART}(/{_PART})*)"
    r":(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127})",
}
"""Kind of destination -> pattern, with groups for its parts."""
Destination = Annotated[
    str, matching(f"^({'|'.join(DESTINATION_FORMS.values())})$", "hf://OWNER/NAME or oci://HOST/NAME:TAG", 500)
]

PushPlace = Annotated[
    str,
    matching(r"^(hf|oci)://[A-Za-z0-9][A-Za-z0-9._:/-]*$", "hf://OWNER, oci://HOST/REPOSITORY, or more of either", 500),
]
"""Destination, or the first parts of destinations."""


class PushRequest(Documented):
    """Body of ``POST /v1/runs/{run}/exports/{name}/push``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"destination": "hf://st-mary/aligned"}]})

    destination: Destination
    """``hf://OWNER/NAME``: a repository of a Hugging Face hub; ``oci://HOST/NAME:TAG``: a tag in an OCI registry."""
    public: bool = False
    """True: a repository that the push creates on a hub is public, and an existing one may be. False: it is private,
    and a public one is refused."""


class ModelPush(Documented):
    """Push of an exported model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "export": "final",
                    "destination": "hf://st-mary/aligned",
                    "state": "done",
                    "address": "https://huggingface.co/st-mary/aligned",
                    "error": None,
                }
            ]
        }
    )

    run: str
    export: str
    """Name of the export."""
    destination: str
    state: Literal["pushing", "done", "failed"]
    address: str | None = None
    """Place of the model, once it is there."""
    error: str | None = None
    """Reason why it failed, and the cure."""


class ModelExport(Documented):
    """Export of a run's model."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "name": "step-00000040",
                    "step": 40,
                    "state": "ready",
                    "error": None,
                    "files": [{"name": "model.safetensors", "bytes": 538000000, "sha256": 64 * "0"}],
                }
            ]
        }
    )

    run: str
    name: str
    """Name of the export in addresses."""
    step: int | None
    """Step of the checkpoint; null for the final model."""
    state: Literal["preparing", "ready", "failed"]
    error: str | None = None
    """Reason why it failed, and the cure."""
    files: tuple[ExportedFile, ...] = ()
    """Files to fetch, once it is ready."""
