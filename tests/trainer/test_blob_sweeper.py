"""Run control deletes what runs that are over left in the shared folder of blobs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mor_core.blobs import INLINE_BYTES, Blobs
from mor_core.runs import RunSpec
from mor_core.stored import LEFTOVER_S
from mor_core.tasks import stop
from mor_trainer.control.alert_store import AlertStore
from mor_trainer.control.blob_sweeper import keep_sweeping
from mor_trainer.control.database import Database
from mor_trainer.control.dead_letter_store import DeadLetterStore
from mor_trainer.control.run_store import RunStore
from redis.asyncio import Redis

from tests.secrecy.marks import lines, logged

pytestmark = pytest.mark.anyio


async def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen in 20 s")


async def test_run_control_sweeps_the_blobs_of_runs_that_are_over(redis: Redis, tmp_path: Path) -> None:
    database = Database.of_file(tmp_path / "history.sqlite3")
    runs = RunStore(database, AlertStore(database, webhook=False), DeadLetterStore(database, 10), lease_s=60)
    folder = tmp_path / "blobs"
    queued, over = (runs.create(RunSpec(name=name, model="/m", prompts="/p")) for name in ("queued", "over"))
    runs.request(over, "stop")
    for run in (queued, over, "unknown"):
        await Blobs(redis, run, str(folder)).put(bytes(INLINE_BYTES + 1), "g1")
    for path in folder.rglob("*"):
        os.utime(path, (time.time() - LEFTOVER_S - 60,) * 2)
    with logged() as buffer:
        broken = asyncio.create_task(keep_sweeping("unknown://store", runs, pause_s=0.05))
        sweeping = asyncio.create_task(keep_sweeping(str(folder), runs, pause_s=0.05, linger_s=0.0))
        try:
            await eventually(lambda: not (folder / over).exists() and not (folder / "unknown").exists())
            await eventually(lambda: buffer.getvalue().count("cannot be swept") > 1)
        finally:
            await stop([broken, sweeping])
            database.close()
    assert len([path for path in (folder / queued).rglob("*") if path.is_file()]) == 1
    (deleted,) = [line for line in lines(buffer) if line["event"] == "blobs of ended runs deleted"]
    assert (deleted["runs"], deleted["files"], deleted["bytes"]) == (2, 2, 2 * (INLINE_BYTES + 1))
