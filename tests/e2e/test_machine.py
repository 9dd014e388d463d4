"""``mor up`` with its real services: a run of two steps, restarts, a backup, and the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.ports import free_port
from tests.shapes import copy_questions, write_rows

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

MOR = Path(sys.executable).with_name("mor")
SCORER = Path(__file__).with_name("scorers.py")
START_S = 400.0
"""Longest wait for the engine, and for two steps, on a busy machine."""


class Machine:
    """``mor up`` and the operator's command."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.file, self.said = folder, folder / "machine.toml", folder / "up.log"
        ports = {name: free_port() for name in ("queue", "router", "rollout", "control", "length")}
        sections = "".join(f"[{name}]\nport = {port}\n" for name, port in ports.items() if name != "length")
        client = f'[clients.length]\nport = {ports["length"]}\nfunction = "{SCORER}:length"\n'
        self.control = f"http://127.0.0.1:{ports['control']}"
        self.client_url = f"http://127.0.0.1:{ports['length']}"
        self.file.write_text(f'model = "{model}"\n{sections}{client}')
        with self.said.open("wb") as said:
            self.process = subprocess.Popen([MOR, "up", self.file], stdout=said, stderr=subprocess.STDOUT)

    def mor(self, *arguments: str) -> Any:
        environment = os.environ | {"MOR_CONFIG": str(self.folder / "state" / "mor.toml")}
        done = subprocess.run(
            [MOR, *arguments, "--json"], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, (arguments, done.stderr, self.logs())
        return json.loads(done.stdout)

    def state_of(self, run: str) -> str:
        token = (self.folder / "state" / "operator.token").read_text()
        answer = httpx.get(f"{self.control}/v1/runs/{run}", headers={"Authorization": f"Bearer {token}"}, timeout=60)
        assert answer.is_success, answer.text
        return str(answer.json()["state"])

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.logs()
            time.sleep(0.3)

    def logs(self) -> str:
        logs = (self.folder / "state" / "logs").glob("*.log")
        return self.said.read_text() + "".join(f"--- {log.name}\n{log.read_text()[-2000:]}" for log in logs)

    def pids(self, program: str) -> list[int]:
        """Return the processes that ``mor up`` has started for a program."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in children if program in Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")]


@pytest.fixture
def machine(tmp_path: Path, tiny_vlm: Path) -> Iterator[Machine]:
    running = Machine(tmp_path, tiny_vlm)
    yield running
    running.process.terminate()
    try:
        running.process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        running.process.kill()
        running.process.wait(timeout=10)


def test_one_machine_trains_a_run_restarts_a_service_and_ends(machine: Machine) -> None:
    machine.until(lambda: "all services are ready" in machine.said.read_text())
    secret = machine.folder / "state" / "clients" / "length" / "router.secret"
    machine.mor("client", "enrol", "length", "--url", machine.client_url, "--secret-file", str(secret), "--active")
    prompts = write_rows(machine.folder / "prompts.jsonl", copy_questions(machine.folder, 8))
    [before] = machine.pids("mor-router")
    os.kill(before, signal.SIGKILL)
    machine.until(lambda: machine.said.read_text().count("router is ready") == 2)
    assert "router was ended by SIGKILL" in machine.said.read_text()
    fields = {"name": "two", "prompts": prompts.name, "steps": 2, "groups_per_step": 2, "group_size": 2}
    spec = machine.folder / "run.json"
    model = machine.file.read_text().splitlines()[0].partition('"')[2].rstrip('"')
    spec.write_text(json.dumps({**fields, "model": model, "sampling": {"max_tokens": 8}}))
    run = machine.mor("run", "create", str(spec))["id"]
    machine.until(lambda: machine.state_of(run) in ("finished", "failed"))
    assert machine.mor("run", "show", run)["step"] == 2
    export = machine.folder / "router.json"
    backed_up = subprocess.run(
        [MOR, "exec", machine.file, "mor-router", "export", export],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert backed_up.returncode == 0 and "length" in export.read_text(), backed_up.stderr
    machine.process.terminate()
    assert machine.process.wait(timeout=120) == 0, machine.logs()
    assert "killed" not in machine.said.read_text()
    private = [path for path in (machine.folder / "state").rglob("*") if path.stat().st_mode & 0o077]
    assert not private, "only the owner can read what the services keep"
