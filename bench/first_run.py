"""Measurement of the first run: the commands of docs/first-run.md as they stand there.

``python bench/first_run.py [--folder DIR]`` runs them below a folder and writes ``bench/results/first-run.json``. The
folder keeps the figures of each stage, so a measurement that was interrupted resumes with the same folder. The
installation is left out: the environment that runs this is what it makes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import end_children_on_sigterm, record
from peak_memory import PeakMemory

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "first-run.md"
STAGES = {
    "data": ("Data",),
    "model": ("Model",),
    "reward models": ("Reward models",),
    "services and run": ("Services", "Clients and objective", "Run", "End"),
}
"""Sections of the page that run in one shell, because later ones need its variables and background jobs."""
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
class Cost:
    """Cost of a stage, all its processes together."""

    seconds: float
    cpu_seconds: float
    peak_memory_gb: float


@dataclass(frozen=True)
class Journey:
    """Figures of the page's commands; accuracies in percent, by domain and under ``all``."""

    before: dict[str, float]
    after: dict[str, float]
    stages: dict[str, Cost]
    alerts: list[dict[str, Any]]
    run: dict[str, Any]

    @property
    def gain(self) -> float:
        """Gain in right answers, percentage points."""
        return self.after["all"] - self.before["all"]


def sections(page: Path = PAGE) -> dict[str, str]:
    """Return the shell commands of each section that has any, by its title without the number."""
    parts = re.findall(r"^## \d+\. (.+?)\n(.*?)(?=^## |\Z)", page.read_text(), re.MULTILINE | re.DOTALL)
    blocks = {title: re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) for title, text in parts}
    return {title: "".join(found) for title, found in blocks.items() if found}


def travel(folder: Path) -> Journey:
    """Run the page's commands below ``folder`` and return their figures; stages of former calls are not run again.

    Raises:
        JourneyError: a command failed, with the end of what its stage printed.
    """
    commands = sections()
    if not (folder / "examples").is_symlink():
        (folder / "examples").symlink_to(ROOT / "examples")
    first = folder / ".mor" / "first"
    stages: dict[str, Cost] = {}
    for number, (stage, titles) in enumerate(STAGES.items()):
        kept = folder / f"{number}.json"
        if not kept.is_file():
            _clean(first, folder / f"{number}.files")
            script = "".join(commands[title] + (_MEASURED if title == "Run" else "") for title in titles)
            cost = _run(script, first if number else folder, folder / f"{number}.output")
            kept.write_text(json.dumps(asdict(cost)))
        stages[stage] = Cost(**json.loads(kept.read_text()))
    return Journey(
        before=_accuracies(first / "before.txt"),
        after=_accuracies(first / "after.txt"),
        stages=stages,
        alerts=json.loads((first / "alerts.json").read_text()),
        run=json.loads((first / "run.json").read_text()),
    )


def _clean(folder: Path, listed: Path) -> None:
    """Remove what an interrupted stage left in a folder: all but the files that stood there when it first began."""
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    if not listed.is_file():
        listed.write_text(json.dumps(found))
    for name in set(found) - set(json.loads(listed.read_text())):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _run(script: str, folder: Path, output: Path) -> Cost:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MOR_")} | {"PATH": path}
    spent, begun = _cpu_seconds(), time.monotonic()
    with output.open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", f"{_STOPPED}\n{script}"],
            cwd=folder,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
        )
        memory = PeakMemory(process.pid)
        status = process.wait()
        memory.stop()
    if status:
        raise JourneyError(f"status {status}; the end of {output}:\n{output.read_text(errors='replace')[-5000:]}")
    return Cost(time.monotonic() - begun, _cpu_seconds() - spent, memory.bytes / 1e9)


def _accuracies(file: Path) -> dict[str, float]:
    """Read what ``grade.py`` printed."""
    found = re.findall(r"^(\w+): .*?([\d.]+) %", file.read_text(), re.MULTILINE)
    return {domain: float(percent) for domain, percent in found}


def _cpu_seconds() -> float:
    """Return the processor time of all descendants that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    end_children_on_sigterm()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="folder to keep and to resume; by default a temporary one")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        journey = travel((folder or Path(temporary)).resolve())
    print(f"{journey.gain:+.1f} points")
    print(record("first-run", asdict(journey)))


if __name__ == "__main__":
    main()
