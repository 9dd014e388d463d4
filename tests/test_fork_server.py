"""Forked processes of tests behave as started ones: environment, log, folder, signals and exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fork_server

BIN = Path(sys.executable).parent
MODULES = ("mor_trainer.__main__", "mor_trainer.cli")


@pytest.fixture(autouse=True)
def fresh_server() -> None:
    """Have a server of the environment as it is: other tests may have changed it since theirs began."""
    fork_server._server.cache_clear()


def start(folder: Path, *arguments: str, **changes: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    with (folder / "log").open("ab") as log:
        return fork_server.start([str(BIN / "mor-trainer"), *arguments], MODULES, environment, log, folder, group=True)


def test_a_forked_process_has_its_own_log_and_status(tmp_path: Path) -> None:
    process = start(tmp_path, "nonsense")
    assert isinstance(process, fork_server.ForkedProcess)
    assert process.wait(60) == process.poll() == 2
    assert "No such command 'nonsense'" in (tmp_path / "log").read_text()
    assert start(tmp_path, "--help").wait(60) == 0


def test_a_forked_process_has_its_own_environment_folder_and_end(tmp_path: Path) -> None:
    process = start(tmp_path, "serve", "--port-file", "port", MOR_RUNS_DIR="runs")
    deadline = time.monotonic() + 60
    while not (tmp_path / "port").exists():
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.05)
    assert (tmp_path / "runs").is_dir()
    assert os.getpgid(process.pid) == process.pid
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.01)
    process.kill()
    assert process.wait(10) == -signal.SIGKILL
    process.kill()  # as of a process that has ended


def test_what_libraries_may_read_is_never_that_of_another_process(tmp_path: Path) -> None:
    process = start(tmp_path, "--help", LANG="C")
    assert not isinstance(process, fork_server.ForkedProcess)
    assert process.wait(60) == 0
