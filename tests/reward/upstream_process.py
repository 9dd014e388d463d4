"""A model server of others as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from tests.certificates import NO_AUTHORITIES


@contextlib.contextmanager
def running(
    command: Sequence[str], ready: str, log: Path, *, starts_s: float, environment: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Run a server within the block, from when the address ``ready`` answers 200; then end all its processes."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            command, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        until = time.monotonic() + starts_s
        while not _answers(ready):
            assert process.poll() is None, log.read_text(errors="replace")[-3000:]
            assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
            time.sleep(0.2)
        yield
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, end)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5, verify=NO_AUTHORITIES).status_code == 200
    except httpx.HTTPError:
        return False
