"""Backup of the router's state: snapshots after each change, and restoration where the queue server lost it.

Each replica looks for the mark of the state (``StateMark``) every second:

==================================== ==================================================================================
the queue server has                 action
==================================== ==================================================================================
the mark                             none
neither mark, clients nor objectives the newest snapshot is restored, in one transaction that only one replica wins;
                                     without a snapshot, the state begins empty
neither, and ``elsewhere``            none: the replica with the snapshots restores or begins the state
clients or objectives without mark   an earlier version stored them: they get a mark; where there are snapshots, a part
                                     of the state was lost, and a person decides
==================================== ==================================================================================

One elected replica writes the snapshots. Their numbers are counted in the queue server, so the newest number has the
newest content whoever wrote it; a number on disk above the server's shows that the server lost its last writes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from mor_core.errors import Invalid, MorError
from mor_core.failures import describe_failure
from mor_core.server_clock import SERVER_CLOCK
from mor_core.tasks import in_thread
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.leadership import Leadership
from mor_router.snapshots.saved_state import SavedState, SnapshotStore
from mor_router.snapshots.state_reader import StateReader
from mor_router.state_mark import StateMark, begin_state, read_mark, restore_lost
from mor_router.store import CLIENTS, OBJECTIVES, STATE, RouterSnapshot, export

_CHECK_S = 1.0
"""Seconds between looks for the mark, each one command."""
_PAUSE_S = 1.0
"""Seconds between looks for a change: changes within them are one snapshot."""
_LEASE_S = 6.0
"""Most seconds without snapshots after the replica that writes them ended: two writers at a time would do no harm."""
_BUSY_SHARE = 0.05
"""Largest share of the time for which a large state is read and written, as long as no decision changes."""
_DECISIONS = ("clients", "objectives", "labellers")
"""Hashes that change with each enrolment, upload, fit and change of a state."""
_OBSERVED = ("probed_at", "card", "model")
"""Fields of a client's record that the next probe fills again."""
_LISTED = 10
"""Lost entries that a message names."""
_PRECIOUS = ("clients", "objectives", "anchors", "labellers", "gates")
"""Kinds of hashes that nobody but a person or a fit can fill again."""

log = structlog.get_logger(__name__)


class StateBackup:
    """Backup of the router's state, in one replica. Without ``store`` nothing outlives the queue server."""

    def __init__(
        self,
        redis: Redis,
        store: SnapshotStore | None,
        wrong_key: Callable[[RouterSnapshot], str | None],
        *,
        elsewhere: bool = False,
    ) -> None:
        """``wrong_key`` explains why the secrets of a snapshot cannot be used, if none of them can. ``elsewhere``:
        another replica has the snapshots.
        """
        self._redis = redis
        self._store = store
        self._wrong_key = wrong_key
        self._elsewhere = elsewhere
        self._reader = StateReader(redis)
        self._saved: SavedState | None = None
        self.problem: str | None = None
        """Reason why the state is not whole, if it is not; for ``/readyz``."""
        self._lost: tuple[tuple[str, int], str] | None = None
        """Installation and epoch of a state of which a part was lost, and the problem in words."""
        self._warnings: dict[str, str] = {}
        """Problems for a person while the router works, by kind."""

    @property
    def warning(self) -> str | None:
        """Problem for a person while the router works, if there is one."""
        return "; ".join(self._warnings.values()) or None

    # --- restoration --------------------------------------------------------------------------------------------

    async def keep_checking(self) -> None:
        """Look for a loss until cancelled."""
        while True:
            await self.try_check()
            await asyncio.sleep(_CHECK_S)

    async def try_check(self) -> None:
        """Check that the queue server has the state, and restore the state where it was lost."""
        try:
            before, self.problem = self.problem, await self._check()
        except RedisError:
            return  # the registry of clients reports it
        except (MorError, OSError) as error:
            before, self.problem = self.problem, f"the router's state is lost: {describe_failure(error)}"
        if self.problem is not None and self.problem != before:
            log.error("the router's state is not whole", problem=self.problem)
        metrics.STATE_PROBLEM.set(self.problem is not None or bool(self._warnings))

    async def _check(self) -> str | None:
        """Restore a lost state; return what is wrong with the state and needs a person.

        Raises:
            Invalid: no snapshot can be used.
            OSError: the snapshots cannot be reached.
            RedisError: the queue server failed.
        """
        if (mark := await read_mark(self._redis)) is not None:
            return self._lost_part(mark)
        saved = None if self._store is None else await in_thread(self._store.newest)
        found = await self._redis.hlen(CLIENTS) + await self._redis.hlen(OBJECTIVES)
        if found and saved is not None:
            return (
                f"the queue server has {found} clients and objectives without the mark {STATE}, so a part of the "
                "router's state may be lost; import a snapshot or an export ('mor-router import --replace'), or move "
                "the snapshots away to go on with what is there"
            )
        if saved is None and self._elsewhere:
            return (
                "the queue server has no state of the router, and the replica that keeps it (MOR_ROUTER_STATE_DIR) has "
                "not restored it yet; look for its reason at that replica"
            )
        if saved is None:
            await begin_state(self._redis)
            log.info("the router's state begins", clients_and_objectives=found)
        else:
            await self._restore(saved)
        return None

    async def _restore(self, saved: SavedState) -> None:
        assert self._store is not None
        snapshot = await in_thread(self._store.whole, saved)
        if (problem := self._wrong_key(snapshot)) is not None:
            raise Invalid(problem)
        mark = saved.mark.model_copy(update={"epoch": saved.mark.epoch + 1})
        if await restore_lost(self._redis, snapshot, mark):
            log.warning(
                "the queue server came back empty; the router's state is restored",
                snapshot=saved.mark.snapshot,
                seconds_old=round(SERVER_CLOCK.now() - saved.saved_at, 1),
                clients=len(snapshot.hashes.get("clients", ())),
                objectives=len(snapshot.hashes.get("objectives", ())),
            )

    def _lost_part(self, mark: StateMark) -> str | None:
        """Return the problem that the writer of snapshots found, while the state is the same."""
        if self._lost is None or self._lost[0] != (mark.installation, mark.epoch):
            self._lost = None
            return None
        return self._lost[1]

    # --- snapshots ----------------------------------------------------------------------------------------------

    async def keep_saving(self) -> None:
        """Write snapshots whenever this replica leads, until cancelled."""
        if self._store is not None:
            await Leadership(self._redis, "snapshots", _LEASE_S).while_leading(self._save_always)

    async def _save_always(self) -> None:
        assert self._store is not None
        self._saved = None
        self._reader.forget()
        try:
            saved, due = None, 0.0
            while True:
                began = time.monotonic()
                decisions = await self._decisions()
                if decisions != saved or began >= due:
                    await self._try_save(self._store)
                    saved, due = decisions, time.monotonic() + (time.monotonic() - began) / _BUSY_SHARE
                await asyncio.sleep(_PAUSE_S)
        finally:
            self._warnings, self._lost = {}, None

    async def _decisions(self) -> dict[str, dict[str, Any]] | None:
        """Return what people and fits have decided, small and seldom changed; ``None`` while it cannot be read."""
        try:
            found = await export(self._redis, lambda name: name not in _DECISIONS)
        except RedisError:
            return None
        return {
            name: {field: _decided(name, value) for field, value in fields.items()}
            for name, fields in found.hashes.items()
        }

    async def _try_save(self, store: SnapshotStore) -> None:
        try:
            await self.save(store)
            await self._look_aside(store)
        except RedisError as error:
            log.warning("no snapshot could be read", error=describe_failure(error))
        except (MorError, OSError) as error:
            problem = f"the router's state cannot be saved: {describe_failure(error)}; see MOR_ROUTER_STATE_DIR"
            if self._warnings.get("save") != problem:
                log.error("no snapshot could be written", problem=problem)
            self._warnings["save"] = problem
        else:
            self._warnings.pop("save", None)

    async def save(self, store: SnapshotStore) -> None:
        """Write a snapshot if the state has changed since the last one.

        Raises:
            Invalid: the state is not that of the snapshots, or a part of it was lost.
            OSError: the snapshot cannot be written.
            RedisError: the queue server failed.
        """
        mark = await self._next_mark()
        if mark is None:
            return
        newest = self._saved or await self._newest(store)
        if newest is not None and await self._is_behind(store, newest, mark):
            mark = mark.model_copy(update={"snapshot": newest.mark.snapshot + 1})
            await self._redis.hset(STATE, "snapshot", str(mark.snapshot))
            newest = await self._newest(store)
        state, apart, values = await self._reader.read(store.missing)
        present = await read_mark(self._redis)
        if present is None or (present.installation, present.epoch) != (mark.installation, mark.epoch):
            self._reader.forget()  # lost or replaced meanwhile
            return
        saved = SavedState(mark=mark, saved_at=SERVER_CLOCK.now(), state=state, apart=apart)
        self._check_parts(newest, saved, present)
        same = newest is not None and saved.same_content(newest) and newest.mark.epoch == mark.epoch
        if newest is not None and same and not values and await in_thread(store.holds, newest):
            self._saved = newest
            return
        await in_thread(store.put, saved, values)
        self._saved = saved

    async def _newest(self, store: SnapshotStore) -> SavedState | None:
        """Return the newest snapshot; ``None`` also where none can be read, because the state itself is there."""
        try:
            return await in_thread(store.newest)
        except Invalid:  # the store has counted and logged it
            return None

    async def _look_aside(self, store: SnapshotStore) -> None:
        """Remind of snapshots that were set aside, until a person has deleted them."""
        if aside := await in_thread(store.set_aside_names):
            self._warnings.setdefault("ahead", f"compare and delete {', '.join(aside)}")
        else:
            self._warnings.pop("ahead", None)

    async def _next_mark(self) -> StateMark | None:
        """Count a snapshot in the queue server; return the mark with its number, ``None`` while the state is lost."""
        if await read_mark(self._redis) is None:
            return None
        number = await self._redis.hincrby(STATE, "snapshot", 1)
        mark = await read_mark(self._redis)
        return None if mark is None else mark.model_copy(update={"snapshot": number})

    async def _is_behind(self, store: SnapshotStore, newest: SavedState, mark: StateMark) -> bool:
        """Return whether the server lost writes since the newest snapshot; set that aside where they are missed.

        Raises:
            Invalid: the snapshots are of another router.
        """
        if newest.mark.installation != mark.installation:
            raise Invalid(
                "the snapshots are of another router's state; give each installation a folder of its own, or move "
                "them away"
            )
        if mark.snapshot > newest.mark.snapshot:
            return False
        state, _, _ = await self._reader.read(lambda _: set())
        if mark.epoch == newest.mark.epoch and (lost := list(lost_entries(newest.state, state))):
            place = await in_thread(store.set_aside, newest)
            self._warnings["ahead"] = (
                f"the queue server lost its last writes: {_listed(lost)} are not as in {place}; import that file, or "
                "enrol or change them again, then delete it"
            )
            log.error("the queue server lost its last writes", lost=lost[:_LISTED], snapshot=place)
        return True

    def _check_parts(self, newest: SavedState | None, saved: SavedState, present: StateMark) -> None:
        """Check that no key of the state vanished by itself.

        Raises:
            Invalid: one did; its last snapshot must not be replaced.
        """
        if newest is None or newest.mark.epoch != saved.mark.epoch or present.removals != newest.mark.removals:
            return
        gone = [
            name
            for name, fields in newest.state.hashes.items()
            if fields and name.partition(":")[0] in _PRECIOUS and not saved.state.hashes.get(name)
        ]
        if gone:
            problem = (
                f"the queue server lost {_listed(gone)} of the router's state, and nobody removed them; import the "
                f"snapshot {newest.mark.snapshot} or an export ('mor-router import --replace')"
            )
            self._lost = ((present.installation, present.epoch), problem)
            raise Invalid(problem)
        self._lost = None


def lost_entries(saved: RouterSnapshot, present: RouterSnapshot) -> Iterator[str]:
    """Yield the entries of a snapshot that the present state does not have, or has otherwise."""
    for name, fields in saved.hashes.items():
        if name.partition(":")[0] not in _PRECIOUS:
            continue
        others = present.hashes.get(name, {})
        for field, value in fields.items():
            if field not in others or _decided(name, value) != _decided(name, others[field]):
                yield f"{name} {field}"


def _decided(name: str, value: str) -> Any:
    """Return a value without what is observed again by itself."""
    if name != "clients":
        return value
    try:
        record = json.loads(value)
        return {field: record[field] for field in record if field not in _OBSERVED}
    except (ValueError, TypeError):
        return value


def _listed(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
