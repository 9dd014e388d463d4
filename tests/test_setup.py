from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent


LIBNUMA = ROOT / "services" / "rollout" / "libnuma.sh"


def environment(folder: Path, loads: str) -> Path:
    """Make an environment whose Python answers questions about libraries by the shell command ``loads``."""
    python = folder / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\ncase "$2" in *CDLL*) {loads};; *purelib*) echo {folder}/venv/packages;; '
        "*) echo nothing is installed here >&2; exit 9;; esac\n"
    )
    python.chmod(0o755)
    (python.parent / "pip").symlink_to(python)
    (folder / "venv" / "packages").mkdir()
    return folder / "venv"


def programs(folder: Path, **scripts: str) -> str:
    """Make a folder of programs for ``PATH``, in which the script's ordinary ones are too."""
    made = folder / "programs"
    made.mkdir()
    for name in ("bash", "cat", "install", "mkdir", "mktemp", "readlink", "rm", "sh", "tail"):
        found = shutil.which(name)
        assert found is not None
        (made / name).symlink_to(found)
    for name, script in scripts.items():
        (made / name).write_text(f"#!/bin/sh\n{script}\n")
        (made / name).chmod(0o755)
    return str(made)


def unpack(venv: Path, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([LIBNUMA, venv], env={"PATH": path}, capture_output=True, text=True, check=False, timeout=60)


def test_nothing_is_fetched_where_the_library_is_present(tmp_path: Path) -> None:
    done = unpack(environment(tmp_path, "exit 0"), programs(tmp_path, **{"apt-get": "echo fetched >&2; exit 1"}))
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_is_unpacked_without_root_and_loaded_by_every_python(tmp_path: Path) -> None:
    venv = environment(tmp_path, f"test -e {tmp_path}/venv/lib/libnuma.so.1")
    unpacks = 'mkdir -p "$3/usr/lib/x86_64-linux-gnu" && echo library > "$3/usr/lib/x86_64-linux-gnu/libnuma.so.1"'
    fetches = 'for word; do last=$word; done; [ "$last" = libnuma1 ] && echo package > libnuma1_2_amd64.deb'
    done = unpack(venv, programs(tmp_path, **{"apt-get": fetches, "dpkg-deb": unpacks}))
    assert done.returncode == 0, done.stderr
    assert (venv / "lib" / "libnuma.so.1").read_text() == "library\n"
    [line] = (venv / "packages" / "mor_libnuma.pth").read_text().splitlines()
    assert line == "import ctypes, sys; ctypes.CDLL(sys.prefix + '/lib/libnuma.so.1')"


def test_setup_names_the_package_where_it_cannot_be_fetched(tmp_path: Path) -> None:
    done = unpack(environment(tmp_path, "exit 1"), programs(tmp_path))
    assert done.returncode == 1
    assert "lacks libnuma.so.1" in done.stderr and "apt-get install libnuma1" in done.stderr


def test_setup_looks_for_the_library_before_it_installs_anything(tmp_path: Path) -> None:
    venv = environment(tmp_path, "exit 0")
    done = subprocess.run(
        ["make", "setup", f"VENV={venv}"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "nothing is installed here" in done.stderr


def test_missing_programs_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    missing = ROOT / ".ci" / "missing"
    path = programs(tmp_path, chromium="", cc="")
    done = subprocess.run([missing], env={"PATH": path}, capture_output=True, text=True, check=True, timeout=60)
    assert "apt-get install --no-install-recommends redis-server" in done.stdout
    assert "chromium" not in done.stdout


def test_a_missing_python_is_named_with_what_to_install(tmp_path: Path) -> None:
    command = ["make", "setup", f"VENV={tmp_path}/venv", "PYTHON=python-that-is-absent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode != 0
    assert "python-that-is-absent is not on this machine" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr
