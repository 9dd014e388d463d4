"""One process of ``mor up``: its start, readiness, end, and the pause before it starts again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time

import httpx

from mor_client.machine.programs import Program
from mor_client.machine.rotated_log import RotatedLog

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
"""Pauses before a process starts again: they double, so that a lasting fault costs no core."""
_STEADY_S = 60.0
"""Seconds of life after which the pauses begin anew."""
_PROBE_TIMEOUT_S = 2.0
_PROBE_EVERY_S = 0.5
_PLAIN_HTTP = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Context without certificates, for probes on loopback: httpx would load all of them for each probe, and a slow start
of the services would lose as much processor time to the probes as to its slowest service."""


class SupervisedProcess:
    """Process that is started again where it ends."""

    def __init__(self, program: Program, log: RotatedLog) -> None:
        self.program = program
        self.log = log
        self.ready = False
        """The process that runs now can do its work."""
        self.worked = False
        """A process of this program did its work once."""
        self.failed_starts = 0
        """Ends in a row of processes that did no work."""
        self.restart_at: float | None = None
        self.pause_s = _FIRST_PAUSE_S
        """Pause between the last end and the next start."""
        self.status: int | None = None
        """Exit status of the last process that ended; negative: the signal."""
        self._process: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None
        """Session of the last process, which may outlive it."""
        self._started_at = 0.0
        self._next_pause_s = _FIRST_PAUSE_S
        self._probe_at = 0.0

    def start(self) -> None:
        """Start the process in a session of its own, where a Ctrl-C of the terminal does not reach it."""
        command = list(self.program.command)
        if (setpriv := shutil.which("setpriv")) is not None:  # it ends with this process, however this one ends
            command = [setpriv, "--pdeathsig", "TERM", "--", *command]
        self._process = subprocess.Popen(  # noqa: S603
            command,
            env=self.program.environment,
            cwd=self.program.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.log.follow(self._process.stdout)
        self._leader = self._process.pid
        self._started_at, self.restart_at, self.ready, self._probe_at = time.monotonic(), None, False, 0.0

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ended(self) -> bool:
        """Return True once for each end of the process, and plan its next start."""
        if self._process is None or self._process.poll() is None:
            return False
        self.status = self._process.returncode
        self._process = None
        self.kill()
        steady = time.monotonic() - self._started_at >= _STEADY_S
        if steady:
            self._next_pause_s = _FIRST_PAUSE_S
        # A process that serves nothing may end while it reads its settings, and has lived so far.
        worked = self.ready if self.program.port is not None else steady
        self.failed_starts = 0 if worked else self.failed_starts + 1
        self.worked = self.worked or worked
        self.ready = False
        self.pause_s = self._next_pause_s
        self.restart_at = time.monotonic() + self.pause_s
        self._next_pause_s = min(2 * self.pause_s, _LONGEST_PAUSE_S)
        return True

    def became_ready(self) -> bool:
        """Return True once for each process, when it can do its work."""
        if self.ready or not self.alive or time.monotonic() < self._probe_at:
            return False
        self._probe_at = time.monotonic() + _PROBE_EVERY_S
        if not self._responds():
            return False
        self.ready = True
        return True

    def _responds(self) -> bool:
        if self.program.url is not None:
            try:
                answer = httpx.get(
                    f"{self.program.url}/readyz", timeout=_PROBE_TIMEOUT_S, trust_env=False, verify=_PLAIN_HTTP
                )
            except httpx.TransportError:
                return False
            return answer.is_success
        if self.program.port is not None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.program.port), timeout=_PROBE_TIMEOUT_S).close()
                return True
            return False
        return True

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the process with all that it started."""
        if self._leader is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._leader, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
        self._leader = None

    def how_it_ended(self) -> str:
        """Describe the last end."""
        if self.status is None:
            return "did not start"
        if self.status < 0:
            return f"was ended by {signal.Signals(-self.status).name}"
        return f"ended with status {self.status}"
