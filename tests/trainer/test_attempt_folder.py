"""A superseded attempt changes no file of its run, even where it wakes up between two system calls."""

from __future__ import annotations

from pathlib import Path

import pytest
from mor_core import atomic
from mor_core.errors import Superseded
from mor_trainer.attempt_folder import AttemptFolder


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def never() -> bool:
    return False


def begin(root: Path, attempt: int) -> AttemptFolder:
    folder = AttemptFolder(root, attempt)
    folder.claim(never)
    return folder


def write(root: Path, name: str, content: bytes, folder: AttemptFolder) -> None:
    with atomic.folder(root / name, staging=folder.path) as partial:
        (partial / "file").write_bytes(content)


def test_a_superseded_attempt_can_neither_replace_nor_delete(tmp_path: Path) -> None:
    earlier = begin(tmp_path, 1)
    write(tmp_path, "checkpoints/step-1", b"earlier", earlier)
    with pytest.raises(FileNotFoundError), atomic.folder(tmp_path / "final", staging=earlier.path) as partial:
        (partial / "file").write_bytes(b"earlier")
        later = begin(tmp_path, 2)  # while the earlier one writes
        write(tmp_path, "final", b"later", later)
    before = files(tmp_path)
    with pytest.raises(FileNotFoundError):
        write(tmp_path, "final", b"earlier", earlier)
    with pytest.raises(FileNotFoundError):
        atomic.write(tmp_path / "record" / "step-1.json", b"earlier", staging=earlier.path)
    with pytest.raises(FileNotFoundError):
        atomic.keep_newest([tmp_path / "checkpoints/step-1", tmp_path / "final"], 1, staging=earlier.path)
    with pytest.raises(Superseded):
        earlier.claim(never)  # it had claimed the run, and begins only now
    earlier.release()
    assert files(tmp_path) == before
    atomic.keep_newest([tmp_path / "checkpoints/step-1", tmp_path / "final"], 1, staging=later.path)
    assert files(tmp_path) == {"final/file": b"later"}
    later.release()
    assert not list(tmp_path.glob(".*"))


def test_a_replacement_that_was_under_way_fails_between_its_two_renames_only_for_the_earlier_attempt(
    tmp_path: Path,
) -> None:
    """Files that an attempt moved aside go with its folder; those that the next one wrote stay."""
    earlier = begin(tmp_path, 1)
    write(tmp_path, "final", b"old", earlier)
    partial = earlier.path / ".final.1.part"
    partial.mkdir()
    (tmp_path / "final").rename(earlier.path / ".final.1.old")
    later = begin(tmp_path, 2)
    write(tmp_path, "final", b"later", later)
    with pytest.raises(FileNotFoundError):
        partial.rename(tmp_path / "final")
    assert files(tmp_path) == {"final/file": b"later"}


def test_the_next_attempt_removes_what_was_left_half_written(tmp_path: Path) -> None:
    earlier = begin(tmp_path, 1)
    (earlier.path / ".step-2.x.part").mkdir()
    (tmp_path / ".memory.json.x.part").write_bytes(b"of an earlier release")
    later = begin(tmp_path, 2)
    assert list(tmp_path.rglob("*")) == [later.path]


def test_an_attempt_that_run_control_confirms_goes_on_after_a_restored_backup(tmp_path: Path) -> None:
    ahead = begin(tmp_path, 9)
    behind = AttemptFolder(tmp_path, 4)
    with pytest.raises(Superseded, match=r"attempt 4 at run .+ is superseded"):
        behind.claim(never)
    behind.claim(lambda: True)
    write(tmp_path, "final", b"behind", behind)
    with pytest.raises(FileNotFoundError):
        write(tmp_path, "final", b"ahead", ahead)
    assert files(tmp_path) == {"final/file": b"behind"}
