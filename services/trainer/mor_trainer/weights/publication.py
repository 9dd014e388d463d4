"""Publishes versions of the policy beside the training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from mor_core.errors import Unavailable
from torch import Tensor


class Publication:
    """Publishes one version at a time on a thread of its own, from the tensors as they stand: they are not copied.

    Whoever changes these calls ``finish`` before. Until then the training thread may compute with them.
    """

    def __init__(self, publish: Callable[[int, Mapping[str, Tensor]], None], timeout_s: float) -> None:
        """``publish`` makes a version's files and tells of them; it is called on the publishing thread."""
        self._publish = publish
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._version = -1
        self._begun = 0.0
        self._failure: Exception | None = None

    def begin(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        """Start to publish; what was begun before is finished first."""
        self.finish()
        self._version, self._begun = version, time.monotonic()
        name = f"publish {version}"
        self._thread = threading.Thread(target=self._run, args=(version, trainable), name=name, daemon=True)
        self._thread.start()

    def _run(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        try:
            self._publish(version, trainable)
        except Exception as error:
            self._failure = error

    def check(self) -> None:
        """Raise what ``finish`` would raise by now; does not wait."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()
        elif self._thread is not None and time.monotonic() > self._begun + self._timeout_s:
            raise self._overdue()

    def finish(self) -> None:
        """Wait until what was begun is out.

        Raises:
            Unavailable: it took longer than ``timeout_s``.
            Exception: what ``publish`` failed with.
        """
        if self._thread is None:
            return
        self._thread.join(max(0.0, self._begun + self._timeout_s - time.monotonic()))
        if self._thread.is_alive():
            raise self._overdue()
        self._thread = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        """Wait as ``finish`` does; what fails now concerns nobody any more."""
        if self._thread is not None:
            self._thread.join(max(0.0, self._begun + self._timeout_s - time.monotonic()))

    def _overdue(self) -> Unavailable:
        return Unavailable(
            f"weights version {self._version} was not written in {self._timeout_s:g} s (MOR_PUBLICATION_TIMEOUT_S); "
            "is the disk of MOR_RUNS_DIR full or slow? Resume the run from its last checkpoint when it is not"
        )
