"""``--watch``: what a script reads in a pipe, and the end by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mor_client.exit_codes import ExitCode

from tests.client.installation import Installation
from tests.client.test_commands import create

START = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
runpy.run_module("mor_client", run_name="__main__")
"""


@contextmanager
def watching(mor: Installation, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", START, *arguments, "--watch"],
        env=os.environ | {"MOR_CONFIG": str(mor.config)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], run: str, word: str) -> list[str]:
    """Read lines until one has both words."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:  # the time limit of the test ends an endless wait
        lines.append(line.rstrip())
        if run in line and word in line:
            return lines
    raise AssertionError(f"{process.stderr and process.stderr.read()}: {lines}")


def test_in_a_pipe_only_changed_rows_follow_until_ctrl_c(mor: Installation, spec_file: Path) -> None:
    still, changed = create(mor, spec_file), create(mor, spec_file)
    with watching(mor, "run", "list") as process:
        first = read_until(process, still, "queued")
        assert first[0].split()[:2] == ["run", "state"]
        assert sum(changed in line for line in first) == 1
        mor.ok("run", "pause", changed)
        later = read_until(process, changed, "paused")
        assert not any(still in line or line.startswith("run ") for line in later), later
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, rest, errors) == (ExitCode.interrupted, "", "")
