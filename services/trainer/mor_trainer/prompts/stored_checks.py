"""Stored results of checks of prompts, by the content of data, model and limits, and beside each run.

A result belongs to the data (by the name of its index), the processor's files, the limits and the versions of the
libraries. Pictures in files of their own are not part of it: one that changes later fails as the group that it is in.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import structlog
from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.plain_files import newest_first, read_plain_file
from mor_core.preflight_status import BadPrompt
from mor_core.prompt_limits import PromptLimits
from mor_core.prompt_sources import PromptFile
from mor_core.sealed_json import seal, unseal
from pydantic import BaseModel, ConfigDict, ValidationError

Stored = TypeVar("Stored", bound=BaseModel)

MOST_LISTED = 10_000
"""Bad rows that a result lists with their reasons; of further ones it has the places."""
MOST_LISTED_OF_RUN = 50_000
"""Bad rows that all results of a run list together."""
MOST_CHARACTERS = 600
"""Characters of a listed reason."""
_LARGEST_FILE = 256 << 20
"""Bytes of results: a listed row has a kilobyte, and a place has eight bytes."""
_KEPT = 256
"""Results that are kept for later runs."""
_RUN_FILE = "preflight.json"
_PROCESSOR_FILES = (".json", ".jinja", ".txt", ".model", ".py")
_LARGEST_PROCESSOR_FILE = 256 << 20
_LIBRARIES = ("mor-core", "transformers", "tokenizers", "pillow")

log = structlog.get_logger(__name__)


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")


class FileCheck(_Stored):
    """Result of the check of one file."""

    rows: int
    bad: int
    left_out: tuple[int, ...]
    """Places, among the rows that can be read, of those that cannot be encoded."""
    listed: tuple[BadPrompt, ...]
    """The first bad rows, unreadable ones included."""


class StoredCheck(_Stored):
    """Result of one file of a run."""

    file: PromptFile
    data: str
    """Name of the index of the checked data."""
    result: FileCheck


class RunChecks(_Stored):
    """Results of all files of a run."""

    files: tuple[StoredCheck, ...]

    def of(self, file: PromptFile, data: str) -> FileCheck | None:
        """Return the result of a file, if its data is still that of the index ``data``."""
        return next((stored.result for stored in self.files if (stored.file, stored.data) == (file, data)), None)

    def data(self, file: PromptFile) -> str | None:
        """Return the name of the index of a file, if the file was checked."""
        return next((stored.data for stored in self.files if stored.file == file), None)

    def left_out(self, file: PromptFile) -> tuple[int, ...]:
        """Return the rows of a file that cannot be encoded, in their order among those that can be read."""
        return next((stored.result.left_out for stored in self.files if stored.file == file), ())


def read_run_checks(run_folder: Path) -> RunChecks | None:
    """Read the results beside a run; ``None`` where there are none that can be read."""
    return _read(run_folder / _RUN_FILE, RunChecks)


def write_run_checks(run_folder: Path, results: RunChecks, staging: Path | None = None) -> None:
    atomic.write(run_folder / _RUN_FILE, seal(results.model_dump_json().encode()), staging=staging)


class FileCheckStore:
    """Folder of results that runs share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, key: str) -> FileCheck | None:
        return _read(self._folder / f"{key}.json", FileCheck)

    def write(self, key: str, result: FileCheck) -> None:
        """Store a result, and delete those that were stored longest ago. Without room it is not stored."""
        try:
            atomic.write(self._folder / f"{key}.json", seal(result.model_dump_json().encode()))
            for file in newest_first(self._folder.glob("*.json"))[_KEPT:]:
                file.unlink(missing_ok=True)
        except OSError as error:
            log.warning("the result of a check is not kept for later runs", reason=describe_failure(error))


def check_key(data: str, model: str, limits: PromptLimits) -> str | None:
    """Return the key under which runs share a result; ``None`` for a model of a hub, which has no files to compare.

    ``data``: name of the data's index.
    """
    folder = Path(model)
    if not folder.is_dir():
        return None
    files = sorted(file for file in folder.iterdir() if file.suffix in _PROCESSOR_FILES and file.is_file())
    processor = [
        (file.name, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in files
        if file.stat().st_size <= _LARGEST_PROCESSOR_FILE
    ]
    return _digest([data, processor, asdict(limits), [version(name) for name in _LIBRARIES]])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _read(path: Path, kind: type[Stored]) -> Stored | None:
    try:
        return kind.model_validate_json(unseal(read_plain_file(path, _LARGEST_FILE)), extra="ignore")
    except FileNotFoundError:
        return None
    except (OSError, Invalid, ValidationError) as error:
        log.warning("a stored check of prompts cannot be read", file=str(path), reason=describe_failure(error))
        return None
