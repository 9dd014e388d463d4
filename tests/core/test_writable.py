"""Places that cannot be written are refused before the work, with the option that named them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from mor_core import writable
from mor_core.errors import Invalid


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    writable.check_file(tmp_path / "new" / "deeper" / "file", "--out")
    writable.check_folder(tmp_path / "model", "--out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["/proc/nowhere/model", "/sys/model", "{file}/model"])
def test_a_parent_that_takes_nothing_is_named(path: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for check in (writable.check_file, writable.check_folder):
        with pytest.raises(Invalid, match=r"--out .*/model cannot be written \(.*\); give a path below a folder"):
            check(Path(path.format(file=file)), "--out")


def test_a_folder_for_files_may_be_missing_yet(tmp_path: Path) -> None:
    writable.check_contents(tmp_path, "MOR_RUNS_DIR")
    writable.check_contents(tmp_path / "runs", "MOR_RUNS_DIR")
    with pytest.raises(Invalid, match="MOR_RUNS_DIR /proc/nowhere"):
        writable.check_contents(Path("/proc/nowhere"), "MOR_RUNS_DIR")


def test_a_file_is_no_folder_and_the_reverse(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Invalid, match="is a folder; give the name of a file"):
        writable.check_file(tmp_path, "--out")
    with pytest.raises(Invalid, match="is a file; give the name of a folder"):
        writable.check_folder(tmp_path / "file", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_permissions_are_respected(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(Invalid, match="Permission denied"):
        writable.check_folder(tmp_path / "model", "--out")
    tmp_path.chmod(0o700)
