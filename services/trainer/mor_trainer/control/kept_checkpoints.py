"""Checkpoints of a run that are on the disk, with what its history tells about them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mor_core.run_status import RunCheckpoint

from mor_trainer import run_files


def kept_checkpoints(run_folder: Path, reported: Iterable[RunCheckpoint]) -> tuple[RunCheckpoint, ...]:
    """List the checkpoints in a run's folder, oldest first; ``reported``: those of its history, which may be gone."""
    known = {Path(one.path).name: one for one in reported}
    found = []
    for path in run_files.checkpoints(run_folder):
        with suppress(FileNotFoundError):  # it is deleted at this moment
            one = known.get(path.name) or RunCheckpoint(
                step=run_files.step_of(path), at=path.stat().st_mtime, path=str(path.resolve())
            )
            found.append(one.model_copy(update={"bytes": run_files.measure(path).bytes}))
    return tuple(found)
