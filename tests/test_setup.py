from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def set_up(environment: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run ``make setup`` with a Python that runs code and refuses to install anything."""
    python = environment / "bin" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "nothing is installed here" >&2\nexit 9\n'
    )
    python.chmod(0o755)
    command = ["make", "setup", f"VENV={environment}", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)


def test_setup_names_the_library_that_the_engine_lacks_before_it_installs_anything(tmp_path: Path) -> None:
    done = set_up(tmp_path, "ENGINE_LIBRARY=libabsent.so.1")
    assert done.returncode != 0
    assert "lacks libabsent.so.1" in done.stderr
    assert "apt-get install libnuma1" in done.stderr
    assert "nothing is installed here" not in done.stderr


def test_setup_goes_on_where_the_library_is_present(tmp_path: Path) -> None:
    done = set_up(tmp_path, "ENGINE_LIBRARY=libc.so.6")
    assert "libnuma1" not in done.stderr
    assert "nothing is installed here" in done.stderr
