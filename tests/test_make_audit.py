"""``make audit`` ends with a status that says what was found, and what could not be checked."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


def pip_audit(left_out: str) -> str:
    """Answer for all pinned packages but one, which the index does not know."""
    pins = re.findall(r"^([\w.-]+)==([^+\s]+)", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    pins += re.findall(r"^([\w.-]+)==([^+\s]+)", (ROOT / "constraints-cuda.txt").read_text(), re.MULTILINE)
    lines: list[dict[str, object]] = [{"name": name, "version": version, "vulns": []} for name, version in pins]
    for line in lines:
        if line["name"] == left_out:
            line["skip_reason"] = "not found on the index"
    return json.dumps({"dependencies": lines})


@pytest.mark.parametrize("left_out", ["", "pydantic"])
def test_a_look_up_of_a_part_does_not_pass(tmp_path: Path, left_out: str) -> None:
    """Nor does a scan that read nothing."""
    scan = '{"findings": []}\n{"blobs_scanned": 9}'
    locked = json.loads((ROOT / "services/trainer/dashboard/package-lock.json").read_text())["packages"]
    npm = json.dumps({"vulnerabilities": {}, "metadata": {"dependencies": {"total": len(locked) - 1}}})
    packages = json.dumps([{"Name": "open", "Version": "1", "License": "MIT"}])
    done = audit(tmp_path, pip_audit=pip_audit(left_out), npm=npm, pip_licenses=packages, kingfisher=scan, git="false")
    assert done.stderr == ""
    assert done.returncode == (2 if left_out else 0), done.stdout
    assert done.stdout.count("IN PART") == (2 if left_out else 0)
    assert ("not looked up (1): pydantic" in done.stdout) is bool(left_out)
    (tmp_path / "parts").mkdir()
    parts = {
        "npm": '{"vulnerabilities": {}, "metadata": {"dependencies": {"total": 1}}}',
        "kingfisher": '{"findings": []}\n{"blobs_scanned": 0}',
        "git": "true",
    }
    done = audit(tmp_path / "parts", pip_audit=pip_audit(""), pip_licenses=packages, **parts)
    assert done.returncode == 2, done.stdout
    assert "packages of package-lock.json" in done.stdout
    assert done.stdout.count("NOT CHECKED") == 2
