"""A run and run control keep a bounded number of things of each kind."""

from __future__ import annotations

import os
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from mor_core import atomic
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.prompts.stored_checks import FileCheck, FileCheckStore
from mor_trainer.run_files import checkpoints
from redis.asyncio import Redis

from tests.trainer.control import Worker, claim, create, eventually
from tests.trainer.kit import bearer, running
from tests.trainer.test_status import sample


def test_the_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        with atomic.folder(tmp_path / "checkpoints" / f"step-{step:08d}") as folder:
            (folder / "state.json").touch()
        atomic.keep_newest(checkpoints(tmp_path), RunSpec.model_fields["keep_checkpoints"].default)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000004", "step-00000005"]


def test_the_newest_results_of_checks_are_kept(tmp_path: Path) -> None:
    store = FileCheckStore(tmp_path)
    result = FileCheck(rows=1, bad=0, left_out=(), listed=())
    for number in range(260):
        (tmp_path / f"{number:03}.json").touch()
        os.utime(tmp_path / f"{number:03}.json", (number, number))
    store.write("last", result)
    assert len(list(tmp_path.glob("*.json"))) == 256
    assert not (tmp_path / "004.json").exists()
    assert store.read("last") == result


@pytest.mark.anyio
async def test_samples_and_dead_letters_are_bounded(settings: ControlSettings, redis: Redis, spec: RunSpec) -> None:
    app = create_app(settings.model_copy(update={"samples_kept": 3, "letters_kept": 2}))
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        worker = Worker(redis, run, (await claim(http))["attempt"])
        await worker.report("state", 0, {"name": "started", "from_step": 0})
        for step in range(1, 7):
            groups = [sample("alpha") | {"images": [f"{step:064x}"]}]
            thumbnails = {f"{step:064x}": b64encode(b"picture").decode()}
            await worker.report("samples", step, {"groups": groups, "thumbnails": thumbnails})
            await worker.step(step, reward=0.5)
            letter: dict[str, Any] = {"stage": "rollout", "stream": "prompts", "attempts": 5, "record": "{}"}
            dropped = {"name": "group_dropped", "reason": "no", "group_id": f"{step:04x}", "letter": letter}
            await worker.report("alert", step, dropped)
        await eventually(http, f"/v1/runs/{run}", lambda found: found["step"] == 6)
        letters = await eventually(http, f"/v1/runs/{run}/dead", lambda found: len(found) == 2)
        assert [letter["step"] for letter in letters] == [6, 5]
        samples = (await http.get(f"/v1/runs/{run}/samples")).json()["samples"]
        assert [group["step"] for group in samples] == [6, 5, 4]
        assert len(app.state.runs._database.rows("SELECT * FROM thumbnails")) == 3
