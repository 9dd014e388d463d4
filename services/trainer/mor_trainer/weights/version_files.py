"""Folders of published weight versions: where they are, and how they are listed and read.

``{run folder}/weights/{version}/`` holds ``manifest.json`` and the files that it names. A version is there whole or not
at all, and never changes. Version numbers only grow over the life of a run, also when it resumes from an older step,
because engines keep the newest version that they saw.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mor_core.errors import Invalid
from mor_core.sealed_json import unseal
from mor_core.stored import StoredEntries
from mor_core.wire import WeightsFile, WeightsManifest

from mor_trainer.run_files import WEIGHTS, own_file

MANIFEST = "manifest.json"
_VERSION = re.compile(r"[0-9]{1,15}")
_LARGEST_VERSION = 10**14
"""Versions above it are damaged or forged; a run never reaches it, and there is room for more digits."""
_UNTOLD_VERSIONS = 1000
"""More versions than a worker publishes between a checkpoint, or a report to the history, and its death."""
_LARGEST_MANIFEST = 32 << 20
"""Bytes, as the rollout service reads them: about 200 for each tensor."""
_VERSIONS = StoredEntries("weight_versions", largest=_LARGEST_MANIFEST)


def weights_folder(run_folder: Path) -> Path:
    return run_folder / WEIGHTS


def published_versions(run_folder: Path) -> list[int]:
    """List the versions of a run that are on the disk, oldest first."""
    folder = weights_folder(run_folder)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if _VERSION.fullmatch(name))


def newest_version(run_folder: Path, known: Iterable[int | None]) -> int:
    """Return a number that no version of a run exceeds; -1 for a run without any.

    ``known``: versions in the checkpoint and in the history. Where the files of the newest of these are gone, those of
    later ones may be gone too, so the number is larger by far.
    """
    published = max(published_versions(run_folder), default=-1)
    newest = max((version for version in known if version is not None and version < _LARGEST_VERSION), default=-1)
    return published if published >= newest else newest + _UNTOLD_VERSIONS


def read_manifest(run_folder: Path, version: int) -> WeightsManifest | None:
    """Read the manifest of a version; ``None`` where there is none that fits."""
    path = weights_folder(run_folder) / str(version) / MANIFEST
    if not _is_plain_file(path, run_folder):
        return None
    with path.open("rb") as file:
        content = file.read(_LARGEST_MANIFEST + 1)

    def parse(given: bytes) -> WeightsManifest:
        manifest = WeightsManifest.model_validate_json(unseal(given), extra="ignore")
        if (manifest.run, manifest.version) != (run_folder.name, version):
            raise Invalid("a manifest lies in the folder of another run or version")
        return manifest

    return _VERSIONS.parse(path, content, parse)


def file_of(run_folder: Path, version: int, file: WeightsFile) -> Path | None:
    """Return the path of a file that a manifest lists; ``None`` where it is gone, a link, or of another size."""
    path = weights_folder(run_folder) / str(version) / file.name
    if not _is_plain_file(path, run_folder):
        return None
    size = path.stat().st_size
    if size != file.bytes:
        _VERSIONS.refuse(path, f"{size} bytes, the manifest lists {file.bytes}")
        return None
    return path


def _is_plain_file(path: Path, run_folder: Path) -> bool:
    """Return whether ``path`` is a file in the folder of the run itself, and not behind a link."""
    if not path.exists():
        return False
    plain = own_file(path, run_folder)
    if not plain:
        _VERSIONS.refuse(path, "it is no plain file of the run's folder; remove the link")
    return plain
