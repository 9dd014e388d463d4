"""One process of the cluster, started again when it ends, with a pause that grows as Kubernetes' does."""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 5.0
"""Pauses before a start. Kubernetes begins with 10 s and goes to 5 min; shorter, so that a campaign fits into an
evening. They count in the time of recovery."""
_GOOD_S = 20.0
"""A process that lived this long is started again with the first pause."""


class ServiceProcess:
    """Process under supervision. ``tick`` is called often, by one thread; all else from any."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.held = False
        """Kept from starting, by a fault."""
        self.starts = 0
        self.exits: list[int] = []
        """Statuses with which it ended by itself or by SIGTERM."""
        self._command = list(command)
        self._clock = folder / f"{name}.clock"
        self._clock.write_bytes(struct.pack("q", 0))
        self._environment = {**environment, "CHAOS_CLOCK": str(self._clock)}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._start_at: float | None = 0.0

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def tick(self) -> None:
        """Start the process where it is due."""
        now = time.monotonic()
        if self.held or self.pid is not None:
            return
        if self._process is not None:
            self.exits.append(self._process.returncode)
            self._process = None
            lived = now - self._started_at
            self._pause_s = _FIRST_PAUSE_S if lived > _GOOD_S else min(_LONGEST_PAUSE_S, 2 * self._pause_s)
            self._start_at = now + (_FIRST_PAUSE_S if lived > _GOOD_S else self._pause_s / 2)
        if self._start_at is None or now < self._start_at:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT, cwd=self._folder
            )
        self._started_at = now
        self.starts += 1

    def signal(self, signum: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signum)

    def set_clock(self, ahead_s: int) -> None:
        """Set this process's system clock ahead or back."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("q", ahead_s))

    def end(self, timeout_s: float) -> int | None:
        """Terminate the process for good and return its status; kill it and return ``None`` when it takes too long."""
        self.held = True
        process = self._process
        if process is None:
            return 0
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None
