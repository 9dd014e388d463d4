"""A full disk is known by the errors of all writers, which leave nothing half-written, and is waited for."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
import torch
from mor_core import atomic
from mor_core.blobs import Blobs
from mor_core.disk_full import (
    DiskFull,
    export_room,
    free_bytes,
    is_disk_full,
    is_server_full,
    watched,
    write_when_room,
)
from mor_core.errors import Unavailable
from mor_core.prompt_index import index_builder
from mor_core.run_announcements import announce
from mor_core.streams import Streams
from mor_core.wire import PromptRecord
from prometheus_client import REGISTRY
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from safetensors import SafetensorError
from safetensors.torch import save_file

from tests.conftest import Valkey
from tests.core.copying_stage import Copy, eventually, letters, short_waits, working  # noqa: F401 - a fixture
from tests.core.records import prompt
from tests.small_files import largest_file

_ROOM = 64 << 10
_LARGE = 256 << 10


def _write_folder(place: Path) -> None:
    with atomic.folder(place / "folder") as folder:
        (folder / "file").write_bytes(bytes(_LARGE))


def _write_folder_of_tensors(place: Path) -> None:
    with atomic.folder(place / "folder") as folder:
        save_file({"a": torch.zeros(_LARGE)}, folder / "a.safetensors")


def _write_folder_by_torch(place: Path) -> None:
    with atomic.folder(place / "folder") as folder:
        torch.save(torch.zeros(_LARGE), folder / "a.pt")


def _write_blob(place: Path) -> None:
    (place / "r" / "ab").mkdir(parents=True, exist_ok=True)
    Blobs(Redis(), "r", str(place))._write("ab" + "0" * 62, bytes(2 * _LARGE))


@pytest.mark.parametrize(
    "write",
    [
        lambda place: atomic.write(place / "file", bytes(_LARGE)),
        _write_folder,
        _write_folder_of_tensors,
        _write_folder_by_torch,
        _write_blob,
    ],
    ids=["file", "folder", "safetensors", "torch", "blob"],
)
def test_a_writer_without_room_leaves_nothing_and_succeeds_later(write: Callable[[Path], None], tmp_path: Path) -> None:
    with largest_file(_ROOM), pytest.raises((OSError, RuntimeError, SafetensorError)) as failure:
        write(tmp_path)
    assert is_disk_full(failure.value), repr(failure.value)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    write(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] != []


def test_a_device_without_space_and_a_database_without_pages_are_full(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as failure, Path("/dev/full").open("wb") as file:
        file.write(b"x")
        file.flush()
    assert is_disk_full(failure.value)
    with closing(sqlite3.connect(tmp_path / "d")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("PRAGMA max_page_count=3")
        with pytest.raises(sqlite3.OperationalError) as refused:
            database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    assert is_disk_full(refused.value)


def _following(cause: BaseException) -> BaseException:
    try:
        try:
            raise cause
        except BaseException as error:
            raise Unavailable("the index cannot be written") from error
    except Unavailable as error:
        return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
        (DiskFull("no"), True),
        (_following(OSError(errno.ENOSPC, "No space left on device")), True),
        (ExceptionGroup("two", [ValueError(), OSError(errno.ENOSPC, "No space left on device")]), True),
        (OSError(errno.EIO, "Input/output error"), False),
        (OSError(errno.EROFS, "Read-only file system"), False),
        (sqlite3.OperationalError("database is locked"), False),
        (ValueError("No space left on device (os error 28)"), False),
        (Unavailable("no"), False),
    ],
    ids=repr,
)
def test_only_errors_that_room_cures_are_a_full_disk(error: BaseException, full: bool) -> None:
    assert is_disk_full(error) is full


def test_a_queue_server_without_memory_or_disk_is_full(valkey: Valkey) -> None:
    with SyncRedis(port=valkey.port) as client:
        script = client.register_script("return redis.call('SET', KEYS[1], 'x')")
        client.config_set("maxmemory", "1")
        for write in (lambda: client.set("a", "x"), lambda: script(keys=["a"])):
            with pytest.raises(RedisError) as failure:
                write()
            assert is_server_full(failure.value), failure.value
        client.config_set("maxmemory", "0")
        script(keys=["a"])
    assert is_server_full(ResponseError("MISCONF Errors writing to the AOF file: No space left on device"))
    assert not is_server_full(ResponseError("WRONGTYPE Operation against a key"))
    assert not is_server_full(ValueError("OOM command not allowed"))


def test_work_waits_for_room_and_ends_on_request() -> None:
    pauses: list[float] = []

    def write() -> str:
        if len(pauses) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return "written"

    assert write_when_room("a file", write, pauses.append) == "written"
    assert len(pauses) == 3

    class Stopped(Exception):
        pass

    def stop(_: float) -> None:
        raise Stopped

    pauses.clear()
    with pytest.raises(Stopped):
        write_when_room("a file", write, stop)
    with pytest.raises(OSError, match="broken"):
        write_when_room("a file", Path("/no/broken").stat, stop)


def test_metrics_tell_who_finds_no_room_and_how_much_is_free(tmp_path: Path) -> None:
    def value() -> float | None:
        return REGISTRY.get_sample_value("mor_disk_full", {"writer": "test"})

    with suppress(DiskFull), watched("test"):
        raise DiskFull("no")
    assert value() == 1
    with suppress(ValueError), watched("test"):
        raise ValueError
    assert value() == 1, "another error says nothing about room"
    with watched("test"):
        pass
    assert value() == 0
    export_room({"test": tmp_path / "not" / "there"})
    free, size = (REGISTRY.get_sample_value(f"mor_disk_{name}_bytes", {"folder": "test"}) for name in ("free", "size"))
    assert free is not None
    assert size is not None
    assert 0 < free <= size
    assert free == pytest.approx(free_bytes(tmp_path), rel=0.2)


def test_an_index_needs_room_ahead(tmp_path: Path) -> None:
    with pytest.raises(DiskFull, match="set MOR_INDEX_DIR to a folder of another disk"):
        index_builder.check_room(tmp_path, 1 << 60, tmp_path / "prompts.jsonl")


@pytest.mark.anyio
async def test_a_full_disk_costs_an_entry_no_delivery(redis: Redis, run_name: str) -> None:
    """The stage of these tests gives an entry up after three deliveries."""
    failures = 0

    def full(record: PromptRecord) -> None:
        nonlocal failures
        del record
        if failures < 6:
            failures += 1
            raise DiskFull("no room") if failures % 2 else OSError(errno.ENOSPC, "No space left on device")

    streams, stage = Streams(redis, run_name, bound=16), Copy(redis, full)
    await streams.publish("prompts", prompt(run_name, "g"), timeout_s=1)
    await announce(redis, run_name, "model")
    async with working(stage):

        async def through() -> bool:
            return await streams.depth("rollouts") == 1

        await eventually(through)
    assert failures == 6
    assert await letters(redis, streams) == []
