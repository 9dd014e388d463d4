"""Measurement of the first run: the commands of docs/first-run.md as they stand there, timed by section.

``python bench/first_run.py [--folder DIR]`` runs them below an empty folder and writes
``bench/results/first-run.json``. The installation is left out: the environment that runs this is what it makes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import record
from peak_memory import PeakMemory

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "first-run.md"
_MEASURED = """
mor run show "$(cat run-id)" --json > run.json
mor alert list --json > alerts.json
"""
"""Commands after the page's own of the section "Run": what the services know of it, while they are up."""
_STOPPED = "trap 'kill $(jobs -p) 2> /dev/null && wait || true' EXIT"
"""End of the services where a command fails while they are up."""


class JourneyError(Exception):
    """A command of the page failed."""


@dataclass(frozen=True)
class Journey:
    """Figures of the page's commands; accuracies in percent, by domain and under ``all``."""

    before: dict[str, float]
    after: dict[str, float]
    section_seconds: dict[str, float]
    cpu_seconds: float
    """Processor time of all processes."""
    peak_memory_gb: float
    alerts: list[dict[str, Any]]
    run: dict[str, Any]

    @property
    def gain(self) -> float:
        """Gain in right answers, percentage points."""
        return self.after["all"] - self.before["all"]


def sections(page: Path = PAGE) -> dict[str, str]:
    """Return the shell commands of each section of the page by its title; the title has no number."""
    parts = re.findall(r"^## \d+\. (.+?)\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    blocks = {title: re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for title, text in parts}
    return {title: "".join(found) for title, found in blocks.items()}


def travel(folder: Path) -> Journey:
    """Run the page's commands below ``folder``, which has no first run yet, and return their figures.

    Raises:
        JourneyError: a command failed, with the end of what all printed.
    """
    (folder / "examples").symlink_to(ROOT / "examples")
    times, output = folder / "times", folder / "output"
    script = ["set -euo pipefail", _STOPPED]
    for title, commands in sections().items():
        if title != "Installation":
            script += [f'echo "$EPOCHREALTIME {title}" >> "{times}"', commands]
        if title == "Run":
            script.append(_MEASURED)
    script.append(f'echo "$EPOCHREALTIME" >> "{times}"')
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOR_")} | {"PATH": path}
    spent = _cpu_seconds()
    with output.open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-c", "\n".join(script)], cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT
        )
        memory = PeakMemory(process.pid)
        status = process.wait()
        memory.stop()
    if status:
        raise JourneyError(f"status {status}; the end of {output}:\n{output.read_text(errors='replace')[-5000:]}")
    first = folder / ".mor" / "first"
    return Journey(
        before=_accuracies(first / "before.txt"),
        after=_accuracies(first / "after.txt"),
        section_seconds=_durations(times),
        cpu_seconds=_cpu_seconds() - spent,
        peak_memory_gb=memory.bytes / 1e9,
        alerts=json.loads((first / "alerts.json").read_text()),
        run=json.loads((first / "run.json").read_text()),
    )


def _accuracies(file: Path) -> dict[str, float]:
    """Read what ``grade.py`` printed."""
    found = re.findall(r"^(\w+): .*?([\d.]+) %", file.read_text(), re.MULTILINE)
    return {domain: float(percent) for domain, percent in found}


def _durations(times: Path) -> dict[str, float]:
    lines = [line.partition(" ") for line in times.read_text().splitlines()]
    begun = [float(time.replace(",", ".")) for time, _, _ in lines]
    return {title: until - since for (_, _, title), since, until in zip(lines, begun, begun[1:], strict=False)}


def _cpu_seconds() -> float:
    """Return the processor time of all descendants that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="empty folder to keep; by default a temporary one")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        if folder is not None:
            folder.mkdir(parents=True)
        journey = travel((folder or Path(temporary)).resolve())
    print(f"{journey.gain:+.1f} points in {sum(journey.section_seconds.values()) / 60:.0f} minutes")
    print(record("first-run", asdict(journey)))


if __name__ == "__main__":
    main()
