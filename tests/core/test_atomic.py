"""Files and folders appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from mor_core import atomic
from mor_core.errors import Conflict
from safetensors.numpy import save_file


def test_a_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file"
    atomic.write(target, b"old")
    atomic.write(target, b"new", mode=0o600)
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert list(target.parent.iterdir()) == [target]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    atomic.write(target, b"old")
    with pytest.raises(TypeError):
        atomic.write(target, "text")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("durable", [True, False])
def test_a_folder_replaces_the_old_one(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "folder"
    for content in ("old", "new"):
        with atomic.folder(target, durable=durable) as partial:
            (partial / "deep").mkdir()
            (partial / "deep" / content).write_text(content)
    assert [path.name for path in (target / "deep").iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, None), (0o077, None), (0o077, 0o755), (0o002, 0o755)])
def test_files_that_a_library_writes_for_their_owner_are_as_open_as_the_folder(
    tmp_path: Path, umask: int, mode: int | None
) -> None:
    target = tmp_path / "model"
    before = os.umask(umask)
    try:
        with atomic.folder(target, mode=mode) as partial:
            save_file({"weight": np.zeros(2)}, partial / "model.safetensors")
            (partial / "inner").mkdir()
            (partial / "inner" / "private").touch(mode=0o600)
    finally:
        os.umask(before)
    wanted = 0o666 & (~umask if mode is None else mode) | 0o600
    for name in ("model.safetensors", "inner/private"):
        assert stat.S_IMODE((target / name).stat().st_mode) == wanted, name


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_umask_decides_who_may_read_unless_the_mode_is_given(tmp_path: Path, umask: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2775)
    before = os.umask(umask)
    try:
        atomic.write(shared / "file", b"prompts")
        atomic.write(shared / "secret", b"token", mode=0o600)
        with atomic.folder(shared / "folder"), atomic.folder(shared / "model", mode=0o755):
            pass
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in shared.iterdir()}
    inherited = 0o2000 if sys.platform == "linux" else 0
    assert modes == {
        "file": 0o666 & ~umask,
        "secret": 0o600,
        "folder": 0o777 & ~umask | inherited,
        "model": 0o755,
    }


@pytest.mark.parametrize(("code", "folders_only"), [(errno.EINVAL, True), (errno.EINVAL, False), (errno.EIO, True)])
def test_only_folders_that_cannot_be_synced_are_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, folders_only: bool
) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) or not folders_only:
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    forgiven = code == errno.EINVAL and folders_only
    with contextlib.nullcontext() if forgiven else pytest.raises(OSError, match=os.strerror(code)):
        atomic.write(tmp_path / "file", b"content")
    with contextlib.nullcontext() if forgiven else pytest.raises(OSError, match=os.strerror(code)):  # noqa: SIM117
        with atomic.folder(tmp_path / "folder") as partial:
            (partial / "file").touch()
    assert (tmp_path / "folder" / "file").exists() == forgiven


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_replaces_a_file_or_a_link_and_leaves_nothing_beside_it(tmp_path: Path, link: bool) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    target = tmp_path / "folder"
    if link:
        target.symlink_to(elsewhere)
    else:
        target.touch()
    with atomic.folder(target) as partial:
        (partial / "new").touch()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert sorted(tmp_path.iterdir()) == [elsewhere, target]
    assert (elsewhere / "kept").exists()


def test_a_body_that_fails_keeps_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    with atomic.folder(target) as partial:
        (partial / "old").touch()
    with pytest.raises(RuntimeError), atomic.folder(target) as partial:
        (partial / "new").touch()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_kept_where_it_must_not_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(Conflict, match="exists"), atomic.folder(tmp_path / "folder", replace=False):
        pytest.fail("the body must not run")


def test_sweep_removes_what_a_killed_process_left(tmp_path: Path) -> None:
    kept = tmp_path / "run" / "kept"
    kept.mkdir(parents=True)
    context = atomic.folder(kept.parent / "half")
    (context.__enter__() / "file").touch()  # as if the process were killed in the body
    (kept.parent / ".state.json.abc.part").touch()
    atomic.sweep(tmp_path)
    assert list(kept.parent.iterdir()) == [kept]


def test_only_the_newest_folders_are_kept(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for path in folders:
        path.mkdir()
    atomic.keep_newest(folders, 2)
    assert sorted(tmp_path.iterdir()) == folders[1:]
