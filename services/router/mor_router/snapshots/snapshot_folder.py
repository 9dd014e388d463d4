"""Snapshots in a folder.

::

    000000000012-9f2c….json             snapshot 12; the name has the first digits of the content's SHA-256
    000000000013-77aa….json.damaged     it does not have this content, or cannot be read: an older one is used
    000000000014-0b1e….json.ahead       the queue server lost writes that this one has; for a person
    values/3b5f…                        a value that is stored apart, by its SHA-256

A file is written whole or not at all, and only its owner can read it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import structlog
from mor_core import atomic
from mor_core.errors import Invalid
from mor_core.failures import describe_failure
from mor_core.plain_files import read_plain_file
from mor_core.stored import StoredEntries
from pydantic import ValidationError

from mor_router.snapshots.saved_state import SavedState
from mor_router.store import RouterSnapshot, is_binary

_MODE = 0o600
_NAME = re.compile(r"(\d{12,16})-([0-9a-f]{16})\.json")
"""A number has twelve digits, or as many as the largest counter of the queue server."""
_LARGEST_SNAPSHOT = 1 << 30
_LARGEST_VALUE = 256 << 20
"""Bytes; the queue server takes no longer value."""
_DAMAGED, _AHEAD = ".damaged", ".ahead"
_MOST_ASIDE = 5
"""Files of each such kind that are kept: a broken disk must not fill itself."""
_UNUSED_S = 3600.0
"""Seconds after which a value that no snapshot names is deleted: another replica may be writing the snapshot."""

_SNAPSHOTS = StoredEntries("router_snapshots")

log = structlog.get_logger(__name__)


class DamagedSnapshot(Invalid):
    """A file with other content than was written."""


class SnapshotFolder:
    """``SnapshotStore`` in a folder that keeps the latest ``keep`` snapshots."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._values = folder / "values"
        self._named: dict[str, set[str]] = {}
        """Snapshot's file -> digests of the values that it names."""

    def newest(self) -> SavedState | None:
        """See ``SnapshotStore``."""
        unread = [path.name for path in self._aside(_DAMAGED)]
        for path in reversed(self._files()):
            try:
                return read_snapshot(path)
            except FileNotFoundError:  # another replica has deleted or renamed it
                continue
            except DamagedSnapshot as error:
                _SNAPSHOTS.refuse(path.name, f"{error}; it is set aside, and an older snapshot is used")
                self._rename(path, _DAMAGED)
                unread.append(path.name)
            except Invalid as error:
                _SNAPSHOTS.refuse(path.name, f"{error}; an older snapshot is used")
                unread.append(path.name)
        if unread:
            raise Invalid(
                f"no snapshot in {self._folder} can be read, such as {unread[-1]}; import an export ('mor-router "
                "import'), or delete these files to begin without clients"
            )
        return None

    def whole(self, saved: SavedState) -> RouterSnapshot:
        """See ``SnapshotStore``."""
        hashes = dict(saved.state.hashes)
        for name, digests in saved.apart.items():
            found = {}
            for field, digest in digests.items():
                try:
                    value = _checked(read_plain_file(self._values / digest, _LARGEST_VALUE), digest)
                    found[field] = base64.b64encode(value).decode() if is_binary(name) else value.decode()
                except (FileNotFoundError, Invalid, UnicodeDecodeError) as error:
                    _SNAPSHOTS.refuse(f"{name} {field}", f"{describe_failure(error)}; it is left out")
            hashes[name] = found
        return saved.state.model_copy(update={"hashes": hashes})

    def missing(self, digests: set[str]) -> set[str]:
        """See ``SnapshotStore``."""
        return {digest for digest in digests if not (self._values / digest).exists()}

    def holds(self, saved: SavedState) -> bool:
        """See ``SnapshotStore``."""
        return any(_number(path) == saved.mark.snapshot for path in self._files())

    def put(self, saved: SavedState, values: Mapping[str, bytes]) -> None:
        """See ``SnapshotStore``."""
        self._values.mkdir(parents=True, exist_ok=True)
        for digest, value in values.items():
            atomic.write(self._values / digest, value, mode=_MODE)
        for digest in _values_of(saved).difference(values, *self._named.values()):
            os.utime(self._values / digest)  # so that no replica deletes it before the snapshot names it
        content = saved.model_dump_json().encode()
        digest = hashlib.sha256(content).hexdigest()[:16]
        atomic.write(self._folder / f"{saved.mark.snapshot:012d}-{digest}.json", content, mode=_MODE)
        for old in self._files()[: -self._keep]:
            old.unlink(missing_ok=True)
        self._delete_unused()

    def set_aside(self, saved: SavedState) -> str:
        """See ``SnapshotStore``."""
        for path in self._files():
            if _number(path) == saved.mark.snapshot:
                self._rename(path, _AHEAD)
        return str([self._folder, *self._aside(_AHEAD)][-1])

    def set_aside_names(self) -> list[str]:
        """See ``SnapshotStore``."""
        return [str(path) for path in self._aside(_AHEAD)]

    def _files(self) -> list[Path]:
        """List the snapshots, oldest first."""
        try:
            found = [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        return sorted(found, key=_number)

    def _aside(self, suffix: str) -> list[Path]:
        return sorted(self._folder.glob(f"*.json{suffix}")) if self._folder.exists() else []

    def _rename(self, path: Path, suffix: str) -> None:
        with suppress(FileNotFoundError):  # another replica did it
            path.rename(path.with_name(path.name + suffix))
        for old in self._aside(suffix)[:-_MOST_ASIDE]:
            old.unlink(missing_ok=True)

    def _delete_unused(self) -> None:
        """Delete the values that no snapshot names, and what a killed process left."""
        kept = {*self._files(), *self._aside(_AHEAD)}
        for path in kept:
            if path.name not in self._named:
                with suppress(FileNotFoundError, Invalid):
                    self._named[path.name] = _values_of(read_snapshot(path))
        self._named = {path.name: self._named[path.name] for path in kept if path.name in self._named}
        used = set().union(*self._named.values())
        for path in [*self._values.iterdir(), *self._folder.glob(".*.part")]:
            with suppress(FileNotFoundError):
                if path.name not in used and time.time() - path.stat().st_mtime > _UNUSED_S:
                    path.unlink()


def _number(path: Path) -> int:
    """Return the number in the name of a snapshot."""
    return int(path.name.partition("-")[0])


def is_snapshot(path: Path) -> bool:
    """Return whether a file is named as a snapshot, set aside or not."""
    return _NAME.match(path.name) is not None


def read_snapshot(path: Path) -> SavedState:
    """Read and check one snapshot.

    Raises:
        DamagedSnapshot: its content is not what was written.
        Invalid: it is no snapshot of this version.
        OSError: it cannot be opened.
    """
    content = read_plain_file(path, _LARGEST_SNAPSHOT)
    name = _NAME.match(path.name)
    if name is None or not hashlib.sha256(content).hexdigest().startswith(name[2]):
        raise DamagedSnapshot(f"{path.name} does not have the content that was written")
    try:
        saved = SavedState.model_validate_json(content, extra="ignore")
    except ValidationError as error:
        raise Invalid(f"{path.name} is no snapshot of this version: {describe_failure(error)}") from error
    if saved.mark.snapshot != int(name[1]):
        raise DamagedSnapshot(f"{path.name} holds snapshot {saved.mark.snapshot}")
    return saved


def _values_of(saved: SavedState) -> set[str]:
    return {digest for digests in saved.apart.values() for digest in digests.values()}


def _checked(value: bytes, digest: str) -> bytes:
    if hashlib.sha256(value).hexdigest() != digest:
        raise Invalid("the stored value does not have the content that was written")
    return value
