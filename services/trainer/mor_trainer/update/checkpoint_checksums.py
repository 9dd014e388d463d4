"""Checksums of a checkpoint's files: written with them, and compared before any of them is used.

``checksums.json`` lists every file of the checkpoint but itself. Each rank hashes its share of the files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from mor_core import atomic
from mor_core.errors import Invalid, MorError, Unavailable
from mor_core.failures import describe_failure
from mor_core.plain_files import check_plain_folder, read_plain_file
from mor_core.wire import Count, Sha256
from pydantic import BaseModel, ValidationError

from mor_trainer.ranks import Ranks

T = TypeVar("T")

_FILE = "checksums.json"
_LARGEST_BYTES = 1 << 20
"""Bytes; a file has about 150 bytes in it, and a rank a few files."""
_NAMED = 5
"""Files that an error names."""


class DamagedCheckpoint(Invalid):
    """A checkpoint does not have the content that was written. Nothing of it was loaded."""


class FileChecksum(BaseModel):
    """Size and hash of one file."""

    bytes: Count
    sha256: Sha256


class CheckpointChecksums(BaseModel):
    """Content of ``checksums.json``."""

    files: dict[str, FileChecksum]


def write_checksums(folder: Path, ranks: Ranks) -> None:
    """Hash the files of a checkpoint that is complete but for this. All ranks call it and share the folder.

    Raises:
        Unavailable: a file cannot be read now; all ranks raise it.
        OSError: the checksums cannot be written; only rank 0 raises it, and no rank waits for another then.
    """
    names: list[str] = []
    error: MorError | None = None
    if ranks.leads:
        try:
            names = _names(folder)
        except OSError as failure:
            error = _not_now(folder, failure)
    ranks.raise_first(error)
    names = _of_rank_0(names, ranks)
    found = _hash_together(folder, names, ranks)
    if ranks.leads:
        atomic.write(folder / _FILE, CheckpointChecksums(files=found).model_dump_json(indent=1).encode())


def has_checksums(folder: Path) -> bool:
    """Return whether a checkpoint has checksums. Those of earlier versions have none."""
    return (folder / _FILE).exists()


def check_checksums(folder: Path, ranks: Ranks) -> None:
    """Compare a checkpoint with its checksums. All ranks call it, and all raise the same error.

    Raises:
        DamagedCheckpoint: a file is missing, was added or changed, or is no plain file.
        Unavailable: a file cannot be read now.
    """
    error: MorError | None = None
    wanted: dict[str, FileChecksum] = {}
    if ranks.leads:
        try:
            wanted = _read(folder)
        except MorError as refused:
            error = refused
    ranks.raise_first(error)
    wanted = _of_rank_0(wanted, ranks)
    found = _hash_together(folder, sorted(wanted), ranks)
    for name, checksum in sorted(wanted.items()):
        if found[name] != checksum:
            raise DamagedCheckpoint(
                f"checkpoint {folder}: the SHA-256 of {name} is {found[name].sha256[:12]}…, "
                f"it was written with {checksum.sha256[:12]}…"
            )


def _read(folder: Path) -> dict[str, FileChecksum]:
    """Return the checksums of a checkpoint whose files all have the names and sizes that were written."""
    try:
        check_plain_folder(folder)
        content = read_plain_file(folder / _FILE, _LARGEST_BYTES)
        wanted = CheckpointChecksums.model_validate_json(content, extra="ignore").files
        sizes = {name: (folder / name).stat().st_size for name in _names(folder)}
    except (ValidationError, FileNotFoundError, Invalid) as error:
        raise DamagedCheckpoint(f"checkpoint {folder}: {describe_failure(error)}") from error
    except OSError as error:
        raise _not_now(folder, error) from error
    if missing := sorted(wanted.keys() - sizes.keys()):
        raise DamagedCheckpoint(f"checkpoint {folder}: {', '.join(missing[:_NAMED])} is missing")
    if added := sorted(sizes.keys() - wanted.keys()):
        raise DamagedCheckpoint(f"checkpoint {folder}: {', '.join(added[:_NAMED])} was added after it was written")
    for name, size in sizes.items():
        if size != wanted[name].bytes:
            raise DamagedCheckpoint(
                f"checkpoint {folder}: {name} has {size} bytes, it was written with {wanted[name].bytes}"
            )
    return wanted


def _names(folder: Path) -> list[str]:
    """List the files of a checkpoint, without the checksums."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != _FILE)


def _hash_together(folder: Path, names: Sequence[str], ranks: Ranks) -> dict[str, FileChecksum]:
    """Hash files, each on one rank; return all hashes on every rank.

    Raises:
        Unavailable: a rank cannot read a file; all ranks raise it.
    """
    own: dict[str, FileChecksum] = {}
    error: MorError | None = None
    try:
        for name in names[ranks.rank :: ranks.size]:
            with (folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                own[name] = FileChecksum(bytes=file.tell(), sha256=digest)
    except OSError as failure:
        error = _not_now(folder, failure)
    ranks.raise_first(error)
    return {name: checksum for part in ranks.gather(own) for name, checksum in part.items()}


def _not_now(folder: Path, error: OSError) -> Unavailable:
    return Unavailable(f"checkpoint {folder}: {describe_failure(error)}; check the disk of MOR_RUNS_DIR")


def _of_rank_0(value: T, ranks: Ranks) -> T:
    return ranks.gather(value)[0]
