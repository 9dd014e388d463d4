"""The commands of docs/first-run.md, as they stand there, improve a model's answers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from first_run import ROOT, STAGES, sections, travel

POINTS = 15.0
"""Least gain in right answers, percentage points."""


def test_the_files_of_the_example_are_those_that_the_page_uses() -> None:
    text = "\n".join(sections().values())
    used = set(re.findall(r"examples/own_domain/([\w*.]+)", text))
    assert used == {"prepare.py", "grade.py", "*.toml"}
    for name in ("machine.toml", "run.toml"):
        assert (ROOT / "examples" / "own_domain" / name).is_file()
        assert name in text


def test_the_page_begins_with_the_installation_and_ends_what_it_has_started() -> None:
    found = sections()
    assert "make setup" in found["Installation"]
    assert ["Installation", *(title for stage in STAGES.values() for title in stage)] == list(found)
    assert "mor up" in found["Services"] and "kill" in found["End"]


@pytest.mark.slow
@pytest.mark.downloads
@pytest.mark.vllm
@pytest.mark.timeout(7200)
def test_the_commands_lead_to_a_healthy_run(tmp_path: Path) -> None:
    journey = travel(tmp_path)
    logs = (tmp_path / ".mor" / "first" / "state" / "logs").glob("*.log")
    for file in (*tmp_path.glob("*.output"), *logs):
        assert "Traceback" not in file.read_text()
    assert journey.run["state"] == "finished"
    assert journey.gain >= POINTS, f"{journey.before} right before, {journey.after} after"
