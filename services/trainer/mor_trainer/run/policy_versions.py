"""Versions of a run's policy: each published in the background, and again where engines cannot use its files."""

from __future__ import annotations

import functools
from collections.abc import Callable

from anyio.from_thread import BlockingPortal
from mor_core.disk_full import is_disk_full

from mor_trainer.groups.exchange import GroupExchange
from mor_trainer.run.disk_wait import DiskWait
from mor_trainer.update.learner import Learner
from mor_trainer.weights.background_publication import BackgroundPublication
from mor_trainer.weights.publisher import Publisher


class PolicyVersions:
    """Versions of one attempt at a run, on the training thread. Files that find no room wait for it."""

    def __init__(
        self,
        newest: int,
        publisher: Publisher,
        timeout_s: float,
        *,
        learner: Learner,
        portal: BlockingPortal,
        exchange: GroupExchange,
        disk: DiskWait,
    ) -> None:
        """``newest``: largest version that an engine may have; the first one here is above it."""
        self.newest = newest
        self._publisher = publisher
        self._publication = BackgroundPublication(publisher.publish, timeout_s)
        self._bytes = 0
        self._learner, self._portal, self._exchange, self._disk = learner, portal, exchange, disk

    def publish(self, step: int) -> None:
        """Make the policy after ``step`` the next version and begin to publish it.

        Raises:
            Unavailable: the version before was not published in time.
        """
        self.finish()
        self.newest += 1
        self._portal.call(self._exchange.advance, step, self.newest)
        self._begin()

    def publish_again(self) -> str | None:
        """Publish the same policy as the next version where an engine cannot use this one; return why.

        Raises:
            Unavailable: the version before was not published in time, or engines could use none of several.
        """
        request = self._portal.call(self._exchange.republish_request)
        if request is None:
            return None
        self.finish()
        self.newest = 1 + max(self.newest, request.above)
        self._portal.call(self._exchange.renumber, self.newest)
        self._begin()
        return f"{request.reason}; the same weights are published again, as version {self.newest}"

    def finish(self) -> None:
        """Wait until the newest version is published: before its tensors change, and before anyone needs it."""
        self._settle(self._publication.finish)

    def check(self) -> None:
        """Raise the error that ``finish`` would raise now, without waiting."""
        self._settle(self._publication.check)

    def close(self, *, hurried: bool) -> None:
        """End the publication; the run is over. ``hurried``: the process is to end, whatever the disk does."""
        self._publication.close(hurried=hurried)
        self._publisher.close()

    def _begin(self) -> None:
        tensors = self._learner.gather()
        self._bytes = self._publisher.bytes_of(self.newest, tensors)
        self._write(functools.partial(self._publication.begin, self.newest, tensors))

    def _settle(self, settle: Callable[[], None]) -> None:
        try:
            settle()
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._write(self._publication.repeat)

    def _write(self, write: Callable[[], None]) -> None:
        self._disk.write(f"weights version {self.newest}", write, self._bytes)
