"""``make audit`` ends with a status that says what was found, and what could not be checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.test_architecture import ROOT


def audit(folder: Path, **tools: str) -> subprocess.CompletedProcess[str]:
    """Run the audit with ``tools`` alone, each with its output."""
    python = folder / "python"
    python.symlink_to(Path(sys.executable).resolve())
    for name, output in tools.items():
        tool = folder / name.replace("_", "-")
        tool.write_text(f"#!/bin/sh\necho '{output}'\n")
        tool.chmod(0o755)
    command = [str(python), str(ROOT / ".ci" / "audit.py")]
    return subprocess.run(command, env={"PATH": str(folder)}, capture_output=True, text=True, check=False)


def test_without_its_tools_nothing_counts_as_checked(tmp_path: Path) -> None:
    done = audit(tmp_path)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.count("NOT CHECKED") == 6
    assert "nothing found" not in done.stdout


def test_a_finding_counts_although_other_checks_were_not_made(tmp_path: Path) -> None:
    package = '{"Name": "closed", "Version": "1", "License": "Proprietary"}'
    done = audit(tmp_path, pip_licenses=f"[{package}]", npm="not JSON")
    assert (done.returncode, done.stderr) == (1, "")
    assert "FOUND          licences" in done.stdout
    assert "closed 1: 'Proprietary'" in done.stdout
    assert done.stdout.count("NOT CHECKED") == 5
