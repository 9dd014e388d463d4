"""Publication of weight versions on a thread in parallel with training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from mor_core.errors import Unavailable
from torch import Tensor

_HURRIED_S = 2.0
"""Longest wait for a version while the process is to end, seconds: a part of the 30 s that it has."""


class BackgroundPublication:
    """Publication of one version at a time on its own thread, from the policy's tensors without a copy.

    The training thread may compute with the tensors meanwhile, and calls ``finish`` before it changes them.
    """

    def __init__(self, publish: Callable[[int, Mapping[str, Tensor]], None], timeout_s: float) -> None:
        """``publish`` writes a version's files and announces them; it is called on the publishing thread."""
        self._publish = publish
        self._timeout_s = timeout_s
        self._thread: threading.Thread | None = None
        self._version = -1
        self._trainable: Mapping[str, Tensor] = {}
        self._begun = 0.0
        self._failure: Exception | None = None

    def begin(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        """Start to publish a version, after the one before is finished."""
        self.finish()
        self._version, self._trainable, self._begun = version, trainable, time.monotonic()
        name = f"publish {version}"
        self._thread = threading.Thread(target=self._run, args=(version, trainable), name=name, daemon=True)
        self._thread.start()

    def _run(self, version: int, trainable: Mapping[str, Tensor]) -> None:
        try:
            self._publish(version, trainable)
        except Exception as error:
            self._failure = error

    def check(self) -> None:
        """Raise the error that ``finish`` would raise now, without waiting."""
        if self._thread is not None and not self._thread.is_alive():
            self.finish()
        elif self._thread is not None and time.monotonic() > self._begun + self._timeout_s:
            raise self._overdue()

    def finish(self) -> None:
        """Wait until the version that was begun is published.

        Raises:
            Unavailable: publication took longer than ``timeout_s``.
            Exception: the error of ``publish``.
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
        self._trainable = {}

    def repeat(self) -> None:
        """Publish the version that failed once more, and wait until it is published. Errors are those of ``finish``."""
        self.begin(self._version, self._trainable)
        self.finish()

    def close(self, *, hurried: bool = False) -> None:
        """Wait as ``finish`` does, but ignore a failure: the run is over.

        ``hurried``: wait a few seconds only. What is written then vanishes with the process, or at the next attempt.
        """
        if self._thread is not None:
            left_s = max(0.0, self._begun + self._timeout_s - time.monotonic())
            self._thread.join(min(left_s, _HURRIED_S) if hurried else left_s)

    def _overdue(self) -> Unavailable:
        return Unavailable(
            f"weights version {self._version} was not written in {self._timeout_s:g} s (MOR_PUBLICATION_TIMEOUT_S); "
            "check whether the disk of MOR_RUNS_DIR is full or slow, then resume the run from its last checkpoint"
        )
