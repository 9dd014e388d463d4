"""A run that is over can be exported as a model that transformers or PEFT loads, from each checkpoint that it keeps."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from mor_core import memory
from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.optimisation import LoraTuning
from mor_core.runs import RunSpec
from mor_trainer.app import create_app
from mor_trainer.config import ControlSettings
from mor_trainer.groups.ledger import Ledger
from mor_trainer.model import loading
from mor_trainer.ranks import Ranks
from mor_trainer.run_files import checkpoint_of
from mor_trainer.update import loop_checkpoint, model_export
from peft import PeftModel
from redis.asyncio import Redis
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.trainer.control import create, eventually
from tests.trainer.kit import bearer, make_spec, running
from tests.trainer.records import order_of

pytestmark = pytest.mark.anyio


def checkpoint(run_folder: Path, spec: RunSpec, rows: list[Prompt], step: int) -> dict[str, torch.Tensor]:
    """Write a checkpoint in which every trained tensor is another one than in the base model; return these."""
    model, _ = loading.load(spec.model)
    loading.tune(model, spec.tuning, spec.freeze_vision)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.add_(step * 0.01)
    state = loop_checkpoint.LoopState(
        step=step, weights_version=step, gate_version=None, ledger=Ledger("r", order_of(len(rows)), 0, 3).state(),
        client_failures={}, spec=spec,
    )  # fmt: skip
    optimiser = torch.optim.AdamW(list(trained.values()))
    loop_checkpoint.save(run_folder, state, trained, optimiser, keep=5, ranks=Ranks(torch.device("cpu")))
    return {name: tensor.detach().clone() for name, tensor in trained.items()}


def test_an_exported_checkpoint_has_the_trained_tensors_and_the_frozen_ones(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path
) -> None:
    trained = checkpoint(tmp_path, make_spec(tiny, prompts), rows_of, 4)
    model_export.export_checkpoint(checkpoint_of(tmp_path, 4), tmp_path / "model")
    base, found = (AutoModelForImageTextToText.from_pretrained(path) for path in (tiny, tmp_path / "model"))
    AutoProcessor.from_pretrained(tmp_path / "model")
    wanted = dict(base.named_parameters()) | trained
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, wanted[name].to(parameter.dtype)), name
    assert any(not torch.equal(trained[name], dict(base.named_parameters())[name]) for name in trained)


def test_an_adapter_is_merged_or_exported_alone(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path
) -> None:
    checkpoint(tmp_path, make_spec(tiny, prompts, tuning=LoraTuning(rank=2)), rows_of, 4)
    for adapter in (False, True):
        model_export.export_checkpoint(checkpoint_of(tmp_path, 4), tmp_path / f"model-{adapter}", adapter=adapter)
    for folder, library in ((tmp_path / "model-False", "transformers"), (tmp_path / "model-True", "peft")):
        card = (folder / "README.md").read_text()
        assert f"library_name: {library}" in card and "| steps | 4 of " in card
        assert str(tiny) not in card, "a path of this machine, which PEFT's own card has"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir() if path.is_file()}
        assert set(modes.values()) == {stat.S_IMODE(folder.stat().st_mode) & 0o666}, modes
    base = AutoModelForImageTextToText.from_pretrained(tiny)
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    merged = dict(AutoModelForImageTextToText.from_pretrained(tmp_path / "model-False").named_parameters())
    again = dict(PeftModel.from_pretrained(base, tmp_path / "model-True").merge_and_unload().named_parameters())
    assert again.keys() == merged.keys()
    for name, parameter in merged.items():
        torch.testing.assert_close(parameter, again[name])
    assert any(not torch.equal(parameter, before[name]) for name, parameter in merged.items())


def test_what_is_no_checkpoint_is_named_with_the_cure(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none", Path(__file__)):
        with pytest.raises(Invalid, match=r"is no checkpoint of a run; give a folder checkpoints/step-"):
            model_export.export_checkpoint(place, tmp_path / "out")


def test_too_little_memory_is_said_before_the_model_is_loaded(
    tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(tmp_path, make_spec(tiny, prompts), rows_of, 4)
    monkeypatch.setattr(model_export, "available_bytes", lambda: 1 << 20)
    with pytest.raises(Exception, match="the export needs 1"):
        model_export.export_checkpoint(checkpoint_of(tmp_path, 4), tmp_path / "model")


def test_the_smallest_of_the_limits_counts(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:      800 kB\n")
    group = tmp_path / "cgroup"
    assert memory.available_bytes(tmp_path / "none", group) is None
    assert memory.available_bytes(tmp_path / "proc", group) == 800 << 10
    group.mkdir()
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("500\n")
    assert memory.available_bytes(tmp_path / "proc", group) == 800 << 10
    (group / "memory.max").write_text("1000\n")
    (group / "memory.stat").write_text("anon 1\ninactive_file 200\n")
    assert memory.available_bytes(tmp_path / "proc", group) == 700


async def test_a_stopped_run_is_exported_over_the_api(
    settings: ControlSettings, redis: Redis, tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    del redis
    spec = make_spec(tiny, prompts)
    app = create_app(settings)
    async with running(app) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, spec)
        (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        folder = settings.runs_dir / run
        assert "has no checkpoint" in await refused(http, run, {}, 409)
        for step in (2, 4):
            checkpoint(folder, spec, rows_of, step)
        listed = (await http.get(f"/v1/runs/{run}/checkpoints")).json()["checkpoints"]
        assert [one["step"] for one in listed] == [2, 4], "also where the history has no report of them"
        assert "no checkpoint of step 3; it keeps those of step 2, 4" in await refused(
            http, run, {"checkpoint": "3"}, 404
        )
        assert "was evaluated" in await refused(http, run, {"checkpoint": "best"}, 409)
        assert "no final model" in await refused(http, run, {"checkpoint": "final"}, 409)
        for step, reward in ((0, 0.9), (2, 0.5), (4, 0.1)):
            summary = {"step": step, "reward": reward, "prompts": 1, "answered": 1}
            app.state.database.write(
                "INSERT INTO evaluations (run, step, attempt, at, data) VALUES (:run, :step, 1, 0, :data)",
                run=run, step=step, data=json.dumps(summary),
            )  # fmt: skip
        begun = (await http.post(f"/v1/runs/{run}/exports", json={"checkpoint": "best"})).raise_for_status()
        assert begun.json()["state"] == "preparing" and begun.json()["step"] == 2
        place = begun.headers["Location"]
        made = await eventually(http, place, lambda found: found["state"] != "preparing", timeout_s=300)
        assert made["state"] == "ready", made["error"]
        card = await http.get(f"{place}/file", params={"path": "README.md"})
        assert "| 0 | 0.9 |" in card.text and "| 2 | 0.5 |" in card.text and "| 4 |" not in card.text
        again = (await http.post(f"/v1/runs/{run}/exports", json={"checkpoint": "2"})).json()
        assert again == made, "an export that exists is not made again"
        for file in made["files"]:
            whole = await http.get(f"{place}/file", params={"path": file["name"]})
            assert hashlib.sha256(whole.content).hexdigest() == file["sha256"]
            part = await http.get(f"{place}/file", params={"path": file["name"]}, headers={"Range": "bytes=3-"})
            assert (part.status_code, part.content) == (206, whole.content[3:])
        assert (await http.get(f"{place}/file?path=../step-00000002.json")).status_code == 404
        storage = (await http.get("/v1/storage")).json()["runs"][0]
        assert storage["exports"] >= sum(file["bytes"] for file in made["files"])


async def test_the_two_newest_exports_are_kept(settings: ControlSettings, redis: Redis) -> None:
    del redis
    app = create_app(settings)
    async with running(app):
        folder = settings.runs_dir / "run" / "exports"
        for age, name in enumerate(("final", "step-00000004", "step-00000002")):
            (folder / name).mkdir(parents=True)
            (folder / f"{name}.json").write_text("{}")
            os.utime(folder / name, (1000 - age, 1000 - age))
        app.state.model_exports._make_room("run", "step-00000006")
        assert sorted(path.name for path in folder.iterdir()) == ["final", "final.json"], "with the one that comes"


async def refused(http: httpx.AsyncClient, run: str, request: dict[str, Any], status: int) -> str:
    reply = await http.post(f"/v1/runs/{run}/exports", json=request)
    assert reply.status_code == status, reply.text
    return str(reply.json()["detail"])


async def test_a_failed_export_has_its_reason(
    settings: ControlSettings, redis: Redis, tiny: Path, prompts: Path, rows_of: list[Prompt]
) -> None:
    del redis
    async with running(create_app(settings)) as http:
        http.headers.update(bearer("admin"))
        run = await create(http, make_spec(tiny, prompts))
        (await http.post(f"/v1/runs/{run}/stop")).raise_for_status()
        checkpoint(settings.runs_dir / run, make_spec(tiny, prompts), rows_of, 2)
        next(checkpoint_of(settings.runs_dir / run, 2).glob("*.safetensors")).unlink()
        place = (await http.post(f"/v1/runs/{run}/exports")).headers["Location"]
        made = await eventually(http, place, lambda found: found["state"] != "preparing", timeout_s=300)
        assert made["state"] == "failed"
        assert "is missing" in made["error"] and "Traceback" not in made["error"]
        assert (await http.get("/v1/storage")).json()["runs"][0]["exports"] == 0, "nothing half is left"
