"""One snapshot of the router's state, and the store of snapshots as the router sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

from mor_core.wire import Finite, Sha256, Wire

from mor_router.state_mark import StateMark
from mor_router.store import RouterSnapshot

_APART = ("images", "audits")
"""Kinds of hashes whose values are large, never change, and can be missed: pictures of anchors, and audited groups that
wait for a label. Each value is stored once, for all snapshots."""


def is_apart(name: str) -> bool:
    """Return whether the values of a hash are stored apart from the snapshots."""
    return name.partition(":")[0] in _APART


class SavedState(Wire):
    """One snapshot: the router's state at one moment. Its secrets are encrypted as in Redis."""

    schema_: Literal["mor.router_state/1"] = "mor.router_state/1"
    mark: StateMark
    """Mark of the state; its ``snapshot`` is the number of this one."""
    saved_at: Finite
    """Unix time, seconds."""
    state: RouterSnapshot
    """The state without what is stored apart."""
    apart: dict[str, dict[str, Sha256]]
    """Hash -> field -> SHA-256 of its value, of what is stored apart."""

    def same_content(self, other: SavedState | None) -> bool:
        """Return whether another snapshot has the same state."""
        return other is not None and (self.state, self.apart) == (other.state, other.apart)


class SnapshotStore(Protocol):
    """Durable store of snapshots. Replicas share it; every method may block, and is called in a thread."""

    def newest(self) -> SavedState | None:
        """Return the newest snapshot that can be read; ``None`` where there is none.

        Raises:
            Invalid: there were snapshots, and none of them can be read.
            OSError: the store cannot be reached.
        """

    def whole(self, saved: SavedState) -> RouterSnapshot:
        """Return the state of a snapshot with what is stored apart. What is damaged there is left out.

        Raises:
            OSError: the store cannot be reached.
        """

    def missing(self, digests: set[str]) -> set[str]:
        """Return those of ``digests`` whose values are not stored.

        Raises:
            OSError: the store cannot be reached.
        """

    def holds(self, saved: SavedState) -> bool:
        """Return whether a snapshot is still stored.

        Raises:
            OSError: the store cannot be reached.
        """

    def put(self, saved: SavedState, values: Mapping[str, bytes]) -> None:
        """Store a snapshot durably, with the new ``values`` of what is stored apart, by SHA-256. Delete old ones.

        Raises:
            OSError: it cannot be written.
        """

    def set_aside(self, saved: SavedState) -> str:
        """Keep a snapshot out of use, for a person, and return where it is.

        Raises:
            OSError: it cannot be written.
        """

    def set_aside_names(self) -> list[str]:
        """Return the places of the snapshots that were set aside because the queue server lost what they have."""
