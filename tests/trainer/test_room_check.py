"""Before its first step a run says which disk is too small, by sizes that are those of its files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from mor_core.datafiles import Prompt
from mor_core.errors import Invalid
from mor_core.model_parameters import ModelParameters
from mor_core.run_size import RunSize
from mor_core.run_status import EngineLimits
from mor_trainer.groups.ledger import Ledger
from mor_trainer.model import loading
from mor_trainer.ranks import Ranks
from mor_trainer.run.room_check import check_room
from mor_trainer.update import loop_checkpoint
from mor_trainer.update.step_timer import StepTimer
from mor_trainer.update.updater import Updater
from mor_trainer.weights import version_writer

from tests.trainer.kit import Processes, make_spec
from tests.trainer.policies import groups_of, policy_of
from tests.trainer.records import order_of
from tests.trainer.stages import until
from tests.trainer.watching import create, points, snapshot

HUGE = 10**9
LORA = {"kind": "lora", "rank": 4}


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tuning", [{"kind": "full"}, LORA])
def test_sizes_from_the_headers_bound_the_files_of_a_run(
    dtype: str, tuning: dict[str, object], tiny: Path, prompts: Path, rows_of: list[Prompt], tmp_path: Path
) -> None:
    policy, spec = policy_of(tiny, prompts, torch.float32, tuning=tuning)
    updater = Updater(policy, spec)
    updater.step(groups_of(policy, rows_of[:2]), 1, StepTimer())
    state = loop_checkpoint.LoopState(
        step=1, weights_version=1, gate_version=None, ledger=Ledger("r", order_of(12), 0, 3).state(),
        client_failures={}, spec=spec,
    )  # fmt: skip
    ranks = Ranks(torch.device("cpu"))
    checkpoint = loop_checkpoint.save(tmp_path, state, policy.trainable, updater.optimiser, keep=1, ranks=ranks)
    version_writer.write_version(
        tmp_path, "r", 0, str(tiny), model=policy.model, adapter=policy.adapter, trainable=policy.trainable, keep=2,
        dtype=getattr(torch, dtype),
    )  # fmt: skip
    model, _ = loading.load(str(tiny))
    model.save_pretrained(tmp_path / "final")

    counted = ModelParameters.of_folder(tiny)
    assert counted.total == sum(parameter.numel() for parameter in model.parameters())
    size = RunSize.of(counted.total, counted.trained(spec), dtype)
    headers = 100_000  # of the tiny model, and vectors in float32
    for found, bound in (
        (bytes_of(checkpoint), size.checkpoint),
        (bytes_of(tmp_path / "weights"), size.version),
        (bytes_of(tmp_path / "final"), size.final),
    ):
        assert found <= bound + headers
        assert found >= 0.7 * bound


def test_what_is_too_small_is_named_with_what_is_needed(tiny: Path, prompts: Path, tmp_path: Path) -> None:
    spec = make_spec(tiny, prompts)
    small = RunSize(version=1, checkpoint=1, final=1)
    assert check_room(spec, small, tmp_path, 0, []) is None
    with pytest.raises(Invalid, match=r"the disk of MOR_RUNS_DIR has .* the run needs .*3 checkpoints of"):
        check_room(spec, RunSize(version=1, checkpoint=1 << 60, final=1), tmp_path, 0, [])
    free = shutil.disk_usage(tmp_path).free
    warning = check_room(spec, small, tmp_path, free + (1 << 20), [])
    assert warning is not None and "are free on the disk of MOR_RUNS_DIR; the run needs" in warning


def test_an_engine_with_too_small_a_volume_is_named(
    tiny: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = shutil.disk_usage(tmp_path)._replace(total=1 << 40, free=1 << 40)  # whatever room this machine has
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    spec = make_spec(tiny, prompts)
    size = RunSize(version=1 << 30, checkpoint=1, final=1)

    def engine(room: int | None, model: str = spec.model) -> EngineLimits:
        return EngineLimits(
            name="rollout-0", model=model, max_model_len=1, max_images=0, max_image_bytes=1, weights_bytes=room
        )

    roomy = [engine(2 << 30), engine(None), engine(1, "another")]
    assert check_room(spec, size, tmp_path, 0, roomy) is None
    with pytest.raises(Invalid, match=r"rollout service rollout-0 has 1\.90 GiB, 2 versions of 1\.00 GiB must fit"):
        check_room(spec, size, tmp_path, 0, [*roomy, engine(int(1.9 * (1 << 30)))])


def test_a_run_that_cannot_fit_ends_before_its_first_step(processes: Processes, tiny: Path, prompts: Path) -> None:
    processes.serve()
    run = create(processes, model=tiny, prompts=prompts, steps=4, keep_weights=HUGE)
    with processes.working():
        until(lambda: snapshot(processes, run)["state"] == "failed", 100, "the run failed")
    error = snapshot(processes, run)["error"]
    assert "the disk of MOR_RUNS_DIR has" in error and "lower keep_checkpoints and keep_weights" in error
    assert not points(processes, run)
