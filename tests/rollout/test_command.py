"""``mor-rollout serve`` as a process: failures stop it, and it reports the reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.vllm


def test_a_wrong_model_stops_the_command_with_the_reason(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mor_rollout.cli", "serve", "--model", str(tmp_path / "nothing")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert "no such folder; give the path of a checkpoint folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_setting_that_is_not_allowed_is_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mor_rollout.cli", "serve", "--model", "x", "--backend", "magic"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "MOR_BACKEND: got 'magic'; wanted: " in done.stderr


def test_an_engine_that_does_not_start_stops_the_command_with_the_root_cause(tiny_vlm: Path, tmp_path: Path) -> None:
    """vLLM reports it in another process's log only."""
    command = [sys.executable, "-m", "mor_rollout.cli", "serve", "--model", str(tiny_vlm), "--port", "0"]
    environment = os.environ | {"MOR_KV_CACHE_BYTES": "4096", "MOR_WEIGHTS_DIR": str(tmp_path / "weights")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, env=environment)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("mor-rollout: vLLM did not start: ValueError: No available memory for the cache"), last


def test_a_dead_engine_stops_the_service_with_the_reason(tiny_vlm: Path, tmp_path: Path, redis_url: str) -> None:
    """A process manager can only restart what has ended."""
    port_file = tmp_path / "address"
    command = [sys.executable, "-m", "mor_rollout.cli", "serve", "--port-file", str(port_file)]
    environment = {
        **os.environ,
        **{"MOR_MODEL": str(tiny_vlm), "MOR_REDIS_URL": redis_url, "MOR_WEIGHTS_DIR": str(tmp_path / "weights")},
        **{"MOR_MAX_MODEL_LEN": "256", "MOR_KV_CACHE_BYTES": str(32 << 20)},
    }
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (port_file.exists() and httpx.get(port_file.read_text() + "/readyz", timeout=10).status_code == 200):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        children = [
            child
            for thread in Path(f"/proc/{process.pid}/task").iterdir()
            for child in (thread / "children").read_text().split()
        ]
        (engine,) = {child for child in children if "EngineCor" in Path(f"/proc/{child}/comm").read_text()}
        os.kill(int(engine), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "mor-rollout: vLLM's engine died" in errors
