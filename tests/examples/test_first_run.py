"""The commands of docs/first-run.md, as they stand there, improve a model's answers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "first-run.md"
POINTS = 15.0
"""Least gain in right answers, percentage points."""


def commands() -> list[str]:
    """Return the page's shell commands, block by block."""
    return re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def right(file: Path) -> float:
    found = re.search(r"^all: ([\d.]+) % right$", file.read_text(), re.MULTILINE)
    assert found is not None, file.read_text()
    return float(found[1])


def test_the_files_of_the_example_are_those_that_the_page_uses() -> None:
    text = "\n".join(commands())
    used = set(re.findall(r"examples/own_domain/([\w*.]+)", text))
    assert used == {"prepare.py", "grade.py", "*.toml"}
    for name in ("machine.toml", "run.toml"):
        assert (ROOT / "examples" / "own_domain" / name).is_file()
        assert name in text


@pytest.mark.slow
@pytest.mark.downloads
@pytest.mark.vllm
@pytest.mark.timeout(7200)
def test_the_commands_lead_to_a_healthy_run(tmp_path: Path) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    installed, *journey = commands()
    assert "make setup" in installed  # the environment that runs this test is what it makes
    script = tmp_path / "journey.sh"
    script.write_text("set -euo pipefail\n" + "\n".join(journey))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOR_")} | {"PATH": path}
    with (tmp_path / "output").open("wb") as output:
        done = subprocess.run(
            ["bash", script], cwd=tmp_path, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
        )
    said = (tmp_path / "output").read_text(errors="replace")
    first = tmp_path / ".mor" / "first"
    logs = "".join(log.read_text() for log in (first / "state" / "logs").glob("*.log"))
    assert done.returncode == 0, said[-5000:]
    assert "Traceback" not in said + logs
    before, after = right(first / "before.txt"), right(first / "after.txt")
    assert after - before >= POINTS, f"{before} % right before, {after} % after"
