"""Blobs outside of Redis that a vanished run left are deleted, and no other file is."""

from __future__ import annotations

import os
import time
from pathlib import Path

import fsspec
import pytest
from mor_core import blob_sweep
from mor_core.blob_sweep import sweep
from mor_core.blobs import INLINE_BYTES, Blobs
from mor_core.stored import LEFTOVER_S
from redis.asyncio import Redis

pytestmark = pytest.mark.anyio

OLD_S = LEFTOVER_S + 60


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def age(folder: Path, seconds: float = OLD_S) -> None:
    """Make all files of a folder older."""
    for path in files(folder):
        os.utime(path, (time.time() - seconds,) * 2, follow_symlinks=False)


async def put(redis: Redis, run: str, folder: Path, number: int) -> str:
    return await Blobs(redis, run, str(folder)).put(bytes([number]) * (INLINE_BYTES + 1), f"g{number}")


async def test_the_blobs_of_a_run_that_vanished_are_deleted_after_a_week(redis: Redis, tmp_path: Path) -> None:
    for number in range(3):
        await put(redis, "vanished", tmp_path, number)
    assert (sweep(str(tmp_path), ()).files, len(files(tmp_path))) == (0, 3), "they are new"
    (part,) = list((tmp_path / "vanished").iterdir())[:1]
    (part / f"{part.name}{'0' * 62}.0123abcd.part").write_bytes(b"of a writer that was killed")
    age(tmp_path)
    swept = sweep(str(tmp_path), ())
    assert (swept.runs, swept.files, swept.last_run) == (1, 4, "")
    assert folders(tmp_path) == []


async def test_no_blob_of_a_run_at_work_is_deleted(redis: Redis, tmp_path: Path) -> None:
    """Neither of an active run, however old, nor of one that this process does not know."""
    known = await put(redis, "known", tmp_path, 1)
    unknown = await put(redis, "unknown", tmp_path, 2)
    age(tmp_path)
    await put(redis, "unknown", tmp_path, 2)  # for a next group
    assert sweep(str(tmp_path), {"known"}).files == 0
    assert len(await Blobs(redis, "known", str(tmp_path)).get(known)) > INLINE_BYTES
    assert len(await Blobs(redis, "unknown", str(tmp_path)).get(unknown)) > INLINE_BYTES


async def test_files_of_others_and_what_links_lead_to_stay(redis: Redis, tmp_path: Path) -> None:
    root, outside = tmp_path / "blobs", tmp_path / "outside"
    await put(redis, "run", outside, 1)
    digest = next(iter(files(outside))).name
    for name in ("run/ab/notes.txt", f"run/zz/{digest}", f"not a run/{digest[:2]}/{digest}", digest):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"of somebody else")
    (root / "linked").symlink_to(outside / "run")
    (root / "run" / digest[:2]).symlink_to(outside / "run" / digest[:2])
    age(tmp_path)
    before = files(tmp_path)
    assert sweep(str(root), ()).files == 0
    assert files(tmp_path) == before


async def test_a_sweep_is_bounded_and_the_next_one_continues(
    redis: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for run in ("a", "b", "c"):
        for number in range(3):
            await put(redis, run, tmp_path, number)
    age(tmp_path)
    age(tmp_path / "a", 0)  # looked at and kept
    monkeypatch.setattr(blob_sweep, "_MOST_FILES", 2)
    after, left = "", []
    for _ in range(8):
        swept = sweep(str(tmp_path), (), after)
        assert swept.files <= 2
        after = swept.last_run
        left.append(len(files(tmp_path)))
    assert left[-1] == 3
    assert folders(tmp_path) == ["a"]


async def test_a_store_that_is_no_folder_is_swept(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    store = fsspec.filesystem("memory")
    blobs = Blobs(redis, "vanished", "memory://mor-test-sweep")
    await blobs.put(bytes(INLINE_BYTES + 1), "g1")
    try:
        assert sweep("memory://mor-test-sweep", ()).files == 0
        monkeypatch.setattr(blob_sweep, "LEFTOVER_S", -1)
        assert sweep("memory://mor-test-sweep", ()).files == 1
        assert store.find("/mor-test-sweep") == []
    finally:
        store.rm("/mor-test-sweep", recursive=True)
