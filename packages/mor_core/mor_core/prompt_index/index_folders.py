"""Folder of indexes: one is opened, after building it where it is missing, and those no longer used are deleted."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path

import structlog

from mor_core import atomic
from mor_core.datafiles.reading import SHOWN_PROBLEMS, refusal
from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure
from mor_core.prompt_index.file_lock import FileLock
from mor_core.prompt_index.fingerprint import fingerprint, later_fingerprint
from mor_core.prompt_index.index_builder import build_index
from mor_core.prompt_index.index_file import MANIFEST
from mor_core.prompt_index.prompt_set import PromptSet

_STALLED_S = 300.0
"""Seconds without progress after which the builder that another process waits for counts as stopped: far longer than
the reading of 256 rows takes, on a slow disk too."""
_POLL_S = 0.2
"""Seconds between looks at a builder in another process."""
_DAY_S = 86400.0
_NAME = "[0-9a-f]" * 32
"""Pattern of the names that ``fingerprint`` gives."""

log = structlog.get_logger(__name__)


def open_prompts(
    path: Path,
    columns: str = "",
    *,
    index_dir: Path,
    leave_out: bool = False,
    former: str | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> PromptSet:
    """Open the prompts of a data set, after building its index below ``index_dir`` where there is none.

    ``leave_out``: whether a set with invalid rows is opened without them; see ``PromptSet.problems``. ``former``: name
    of the index that was used before, which is opened again even if pictures have changed since; without it they get
    another index. ``progress`` receives the number of rows read so far while an index is built, 0 while another process
    builds it; what it raises ends the work.

    Raises:
        DataFileError: as ``read_prompts``.
        Invalid: there is no such data set, or ``columns`` is no map.
        Unavailable: the index cannot be written, or another process that builds it has stopped.
    """
    name = fingerprint(path, columns)

    def build(folder: Path, advanced: Callable[[int], None]) -> None:
        build_index(path, columns, folder, advanced)
        if fingerprint(path, columns) != name:
            raise Invalid(f"{path} changed while it was read; start again when it is complete")

    prompts = _opened_or_built(path, index_dir / name, build, progress)
    while prompts.folder.name != former and (changes := prompts.changes()):
        later = later_fingerprint(prompts.folder.name, changes)
        prompts = _opened_or_built(path, index_dir / later, build, progress)
    if not prompts or not leave_out:
        refuse_problems(path, prompts)
    return prompts


def refuse_problems(path: Path, prompts: PromptSet) -> None:
    """Refuse a data set with invalid rows, or without rows.

    Raises:
        DataFileError: as ``read_prompts``.
    """
    if not prompts or prompts.problems:
        raise refusal(path, list(islice(prompts.problems, SHOWN_PROBLEMS)), len(prompts.problems), "prompts")


def sweep_indexes(index_dir: Path, unused_days: float, most_bytes: int) -> None:
    """Delete the indexes that were not opened for ``unused_days``, and the oldest while all have over ``most_bytes``.

    One that is in use stays, and so does all in the folder that is no index. What a killed builder left is deleted.
    """
    known = []
    for folder in index_dir.glob(_NAME):
        with suppress(OSError):
            states = [file.stat() for file in (folder, *folder.iterdir())]
            known.append((max(state.st_mtime for state in states), sum(state.st_size for state in states), folder))
    total = sum(size for _, size, _ in known)
    for used, size, folder in sorted(known):
        if (total > most_bytes or time.time() - used > unused_days * _DAY_S) and _delete_unused(folder):
            log.info("index deleted", folder=str(folder), bytes=size, unused_days=round((time.time() - used) / _DAY_S))
            total -= size
    for lock in index_dir.glob(f".{_NAME}.lock"):
        with suppress(OSError):
            if (held := FileLock.acquire(lock)) is not None:
                _delete_parts(index_dir, lock.stem.removeprefix("."))
                lock.unlink()
                held.release()


def _opened_or_built(
    path: Path, folder: Path, build: Callable[[Path, Callable[[int], None]], None], progress: Callable[[int], None]
) -> PromptSet:
    """Open the index ``folder``, or build it by ``build``."""
    index_dir, name = folder.parent, folder.name
    try:
        if (found := _opened(folder)) is not None:
            return found
        index_dir.mkdir(parents=True, exist_ok=True)
        with _only_builder(index_dir / f".{name}.lock", progress) as advanced:
            if (found := _opened(folder)) is not None:
                return found
            _delete_parts(index_dir, name)
            with atomic.folder(folder) as partial:
                build(partial, advanced)
            return PromptSet(folder)
    except OSError as error:
        raise Unavailable(
            f"{index_dir}: the index of {path} cannot be used ({describe_failure(error)}); "
            "set MOR_INDEX_DIR to a folder that can be written and has locks"
        ) from error


def _opened(folder: Path) -> PromptSet | None:
    """Open an index; return ``None`` where there is none that can be used."""
    try:
        prompts = PromptSet(folder)
    except FileNotFoundError:
        return None
    except Invalid as error:
        log.warning("index is built again", folder=str(folder), reason=str(error))
        return None
    with suppress(OSError):  # a folder that may only be read is swept by whoever may write
        (folder / MANIFEST).touch()
    return prompts


@contextmanager
def _only_builder(lock_file: Path, progress: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """Wait until no other process builds an index, and yield ``progress`` for the builder.

    Raises:
        Unavailable: another one builds it and does not advance.
    """
    changed, since = 0, time.monotonic()
    while (lock := FileLock.acquire(lock_file)) is None:
        with suppress(FileNotFoundError):
            if (last := lock_file.stat().st_mtime_ns) != changed:
                changed, since = last, time.monotonic()
        if time.monotonic() - since > _STALLED_S:
            raise Unavailable(
                f"{lock_file}: another process builds this index and has not advanced for {_STALLED_S:g} s; end it"
            )
        progress(0)
        time.sleep(_POLL_S)

    def advanced(rows: int) -> None:
        lock.touch()
        progress(rows)

    try:
        yield advanced
    finally:
        lock.release()


def _delete_unused(folder: Path) -> bool:
    """Delete an index; return whether nobody uses it."""
    with suppress(OSError):  # also where the folder may only be read
        if (lock := FileLock.acquire(folder / MANIFEST)) is not None:
            atomic.delete(folder)
            lock.release()
            return True
    return False


def _delete_parts(index_dir: Path, name: str) -> None:
    """Delete what builders of an index left that were killed; the caller has its lock."""
    for part in index_dir.glob(f".{name}.*"):
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
