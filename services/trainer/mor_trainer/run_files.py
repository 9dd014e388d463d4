"""Names in a run's folder, and the sizes of its parts.

==================== ====================================================================
``checkpoints``      ``step-00000020`` each; ``step-00000020.bad`` cannot be used
``weights``          published weights versions
``record``           replay log of a deterministic run
``exports``          models that were exported from checkpoints
``final``            aligned model of a finished run
``files-deleted``    mark of a run whose checkpoints were deleted: it cannot continue
==================== ====================================================================
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mor_core import atomic
from mor_core.blobs import is_run_id
from mor_core.errors import NotFound

CHECKPOINTS = "checkpoints"
WEIGHTS = "weights"
REPLAY_LOG = "record"
EXPORTS = "exports"
FOLDERS = (CHECKPOINTS, WEIGHTS, REPLAY_LOG, EXPORTS)
"""Folders of a run that are deleted some time after its end."""
FINAL = "final"
DELETED_MARK = "files-deleted"
_CHECKPOINT = re.compile(r"step-[0-9]{8,15}")
"""The longest number is below the largest step that an answer can have."""
_SET_ASIDE = re.compile(r"step-[0-9]{8,15}\.bad(-[0-9]+)?")


def folder_of(runs_dir: Path, run: str) -> Path:
    """Return the folder of a run.

    Raises:
        NotFound: this is no id of a run, and as a path it may lead elsewhere.
    """
    if not is_run_id(run):
        raise NotFound(f"{run[:80]!r} is no id of a run, so it has no files; 'mor run list' shows all")
    return runs_dir / run


def checkpoints(run_folder: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first."""
    return _matching(run_folder, _CHECKPOINT)


def damaged_checkpoints(run_folder: Path) -> list[Path]:
    """List the checkpoints that were set aside, oldest first."""
    return _matching(run_folder, _SET_ASIDE)


def checkpoint_of(run_folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of a step."""
    return run_folder / CHECKPOINTS / f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the step after which a checkpoint was written, from its name."""
    return int(checkpoint.name.split("-")[1].partition(".")[0])


def _matching(run_folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    return sorted(path for path in (run_folder / CHECKPOINTS).glob("step-*") if pattern.fullmatch(path.name))


def files_are_deleted(run_folder: Path) -> bool:
    """Return whether the checkpoints of a run were deleted after its end."""
    return (run_folder / DELETED_MARK).exists()


def own_folder(path: Path) -> bool:
    """Return whether a path is a folder, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def own_file(path: Path, run_folder: Path) -> bool:
    """Return whether a path is a file in the folder of a run, neither behind a link nor outside by ``..``."""
    return path.is_file() and path.resolve() == run_folder.resolve() / path.relative_to(run_folder)


def leftovers(run_folder: Path) -> list[Path]:
    """List what a killed process left half-written or half-deleted in a run's folder."""
    return [path for suffix in atomic.LEFTOVERS for path in run_folder.glob(f".*{suffix}")]


@dataclass(frozen=True)
class FolderSize:
    """Files below a folder, or a file; links are not followed."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: FolderSize) -> FolderSize:
        return FolderSize(self.bytes + other.bytes, self.files + other.files)


def measure(path: Path) -> FolderSize:
    """Return the size of what is at ``path``; what is deleted meanwhile has none."""
    if not own_folder(path):
        with suppress(OSError):
            return FolderSize(path.lstat().st_size, 1)
        return FolderSize()
    size, files = 0, 0
    for place, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                size, files = size + (Path(place) / name).lstat().st_size, files + 1
    return FolderSize(size, files)
