"""``mor run tag|note|csv`` against a real run control."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from mor_client.exit_codes import ExitCode

from tests.client.installation import Installation
from tests.client.test_commands import create, step, work


def test_tags_find_a_run_and_a_note_says_why_it_was_made(mor: Installation, spec_file: Path) -> None:
    run, other = create(mor, spec_file), create(mor, spec_file)
    assert mor.ok("run", "tag", run, "baseline", "august").split() == ["august", "baseline"]
    assert mor.ok("run", "tag", run, "--remove", "august").split() == ["baseline"]
    assert mor.json("run", "tag", run)["tags"] == ["baseline"]
    listed = mor.json("run", "list", "--tag", "baseline")
    assert [found["id"] for found in listed] == [run]
    assert other in mor.ok("run", "list")
    mor.ok("run", "note", run, "the first [with] new anchors")
    assert mor.ok("run", "note", run).strip() == "the first [with] new anchors"
    shown = mor.ok("run", "show", run)
    assert "new anchors" in shown
    assert "baseline" in shown
    mor.ok("run", "note", run, "")
    assert mor.json("run", "show", run)["note"] is None
    for queued in (run, other):
        mor.ok("run", "stop", queued)  # so that no worker of another test claims it


def test_the_figures_of_a_run_become_a_file(mor: Installation, spec_file: Path, tmp_path: Path) -> None:
    run = create(mor, spec_file)
    work(mor, run, step(1, 0.25), step(2, 0.5), end="finished")
    file = tmp_path / "figures.csv"
    mor.ok("run", "csv", run, "--out", str(file))
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["reward_mean"] for row in rows] == ["0.25", "0.5"]
    assert rows[0]["sources.warm-up.epochs"] == "1.5"
    refused = mor.mor("run", "csv", "nope", "--out", str(tmp_path / "none.csv"))
    assert refused.exit_code == ExitCode.not_found
    assert not (tmp_path / "none.csv").exists()
    assert "unwritable" in mor.mor("run", "csv", run, "--out", str(tmp_path / "unwritable" / "x.csv")).stderr
