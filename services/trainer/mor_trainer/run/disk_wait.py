"""Waits of a run for room on the disk of its folder: a full disk costs time, and neither the run nor its lease."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog
from mor_core.disk_full import DiskFull, free_bytes, is_disk_full
from mor_core.failures import describe_failure

from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunLease

T = TypeVar("T")

_CHECK_S = 0.2
"""Seconds between looks at pause, stop and the end of the process while a run waits."""
_AGAIN_S = 5.0
"""Seconds until a write is tried again that failed although the disk seemed to have room: a quota, or no inode."""

log = structlog.get_logger(__name__)


class DiskWait:
    """Writes of one run that wait for room.

    A write needs its own bytes and, beyond them, a reserve for others on the same disk, such as the history. Where less
    is free it is not begun. ``low`` is called once each time the disk begins to have no room for a further write.
    """

    def __init__(
        self, folder: Path, reserve: int, *, lease: RunLease, interruption: Interruption, low: Callable[[str], None]
    ) -> None:
        self._folder, self._reserve = folder, reserve
        self._lease, self._interruption = lease, interruption
        self._low = low
        self._is_low = self._noted = False
        self.ended = 0.0
        """Monotonic time at which the last wait ended."""

    def write(self, what: str, write: Callable[[], T], needed: int = 0) -> T:
        """Return ``write()``, which is repeated until the disk has room for it. ``needed``: its bytes, about.

        Raises:
            RunInterrupted: the run was stopped, or the process must end; what was to be written is not there.
            RunLeaseLost: the run belongs to another worker.
            Exception: an error of ``write`` that is not a full disk.
        """
        waited = False
        try:
            while True:
                try:
                    self._check_room(what, needed)
                    return write()
                except Exception as error:
                    if not is_disk_full(error):
                        raise
                    if not waited:
                        log.warning("the disk is full; the run waits", what=what, reason=describe_failure(error))
                        waited = True
                    self._lease.report_disk_full(_reason(what, error))
                self._wait(needed)
        finally:
            if waited:
                self.ended = time.monotonic()
                self._lease.report_disk_full(None)
                log.info("the run no longer waits for room on the disk", what=what)

    def note(self, reason: str | None) -> None:
        """Report that others find no room for what the run sends, or with ``None`` that they do."""
        if reason is not None or self._noted:
            self._lease.report_disk_full(reason)
            self.ended = time.monotonic()
        self._noted = reason is not None

    def _check_room(self, what: str, needed: int) -> None:
        """Check that a write fits, and warn where a second one would not.

        Raises:
            DiskFull: it does not fit.
        """
        free = free_bytes(self._folder)
        if needed and free < needed + self._reserve:
            raise DiskFull(
                f"{free} bytes are free, {what} needs about {needed} and MOR_DISK_RESERVE_BYTES keeps {self._reserve}; "
                "make room on the disk of MOR_RUNS_DIR"
            )
        if needed and free < 2 * needed + self._reserve:
            if not self._is_low:
                self._low(
                    f"{free} bytes are free on the disk of MOR_RUNS_DIR; {what} takes about {needed} of them, and then "
                    "there is no room for another one: the run will wait. Make room"
                )
            self._is_low = True
        elif needed:
            self._is_low = False

    def _wait(self, needed: int) -> None:
        """Wait until a write may fit; obey run control and the process meanwhile, without a checkpoint."""
        until = time.monotonic() + _AGAIN_S
        short = free_bytes(self._folder) < needed + self._reserve
        while time.monotonic() < until:
            self._interruption.obey(lambda: None)
            time.sleep(_CHECK_S)
            if short and free_bytes(self._folder) >= needed + self._reserve:
                return


def _reason(what: str, error: BaseException) -> str:
    """Return why a run waits, with a remedy."""
    if isinstance(error, DiskFull):
        return str(error)
    return f"{what} found no room ({describe_failure(error)}); make room on its disk"
