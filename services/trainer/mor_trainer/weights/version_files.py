"""Folders of published weight versions: where they are, and how they are listed and read.

``{run folder}/weights/{version}/`` holds ``manifest.json`` and the files that it names. A version is there whole or not
at all, and never changes. Version numbers only grow over the life of a run, also when it resumes from an older step,
because engines keep the newest version that they saw.
"""

from __future__ import annotations

from pathlib import Path

from mor_core.wire import WeightsManifest

MANIFEST = "manifest.json"


def weights_folder(run_folder: Path) -> Path:
    return run_folder / "weights"


def published_versions(run_folder: Path) -> list[int]:
    """List the versions of a run that are on the disk, oldest first."""
    folder = weights_folder(run_folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdigit())


def read_manifest(run_folder: Path, version: int) -> WeightsManifest | None:
    path = weights_folder(run_folder) / str(version) / MANIFEST
    try:
        return WeightsManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
