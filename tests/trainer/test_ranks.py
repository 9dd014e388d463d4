"""Two ranks, started by torchrun, against one process: the same losses, gradients, metrics and weights."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mor_core.datafiles import Prompt
from mor_core.optimisation import LoraTuning
from mor_trainer.ranks import Ranks, balanced_partition
from mor_trainer.update.checkpoint_checksums import check_checksums
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from tests.model_families import build_family
from tests.tiny_models import build_tiny_vlm
from tests.trainer import rank_work
from tests.trainer.kit import make_spec, write_prompts
from tests.trainer.policies import groups_of, policy_of

ALONE = Ranks(rank_work.CPU)
LORA = {"tuning": LoraTuning(rank=4).model_dump()}
OPTIMISER = {"lr": 1e-3, "warmup_steps": 0, "grad_clip": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "full": {"optimiser": OPTIMISER},
    "lora": {"optimiser": OPTIMISER, **LORA},
    "two-updates-recomputed": {"optimiser": {**OPTIMISER, "updates_per_step": 2}, "gradient_checkpointing": True},
    "plain-path-vision-trained": {"optimiser": OPTIMISER, "shared_prompt": "off", "freeze_vision": False},
    "lora-qwen": {"optimiser": OPTIMISER, **LORA},
    "windows-recomputed": {"optimiser": OPTIMISER, "gradient_checkpointing": True},
    "states": {"optimiser": OPTIMISER},
    "broken-step": {"optimiser": OPTIMISER},
}


def torchrun(cases: Path, out: Path, ranks: int = 2) -> None:
    """Run the cases on that many ranks of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    root = Path(__file__).parents[2]
    paths = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, str(Path(rank_work.__file__)), str(cases), str(out)],
        env=environment, cwd=root, capture_output=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()[-6000:]


def steps_of(
    model: Path, prompts: Path, rows: list[Prompt], count: int, *, groups: int = 4
) -> list[list[dict[str, Any]]]:
    """Steps of scored groups of different lengths, as rank 0 sends them."""
    policy, _ = policy_of(model, prompts, torch.float32)
    dice = random.Random(0)
    steps = []
    for seed in range(count):
        chosen = dice.sample(range(len(rows)), groups)
        made = groups_of(policy, [rows[index] for index in chosen], size=dice.randint(2, 5), seed=seed)
        steps.append(
            [
                {
                    "prompt": index,
                    "prompt_tokens": group.prompt_tokens,
                    "responses": group.responses,
                    "engine_logprobs": group.engine_logprobs,
                    "rewards": group.rewards,
                }
                for index, group in zip(chosen, made, strict=True)
            ]
        )
    return steps


class Results:
    """Results of each case, by one process and by two ranks."""

    def __init__(self, alone: Path, two: Path) -> None:
        self.alone, self.two = alone, two

    def expect_equal(self, name: str, other: str | None = None, tolerance: float = 3e-6) -> None:
        """Two ranks have the same weights after ``name`` as one process after ``other``."""
        ours = load_file(self.alone / f"{other or name}.safetensors")
        theirs = load_file(self.two / f"{name}.safetensors")
        assert ours.keys() == theirs.keys()
        weights = torch.cat([tensor.flatten() for tensor in ours.values()])
        difference = weights - torch.cat([theirs[key].flatten() for key in ours])
        assert difference.norm() <= tolerance * weights.norm()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, tiny: Path, prompts: Path, rows_of: list[Prompt]) -> Results:
    folder = tmp_path_factory.mktemp("ranks")
    alone, two = folder / "alone", folder / "two"
    models = {
        "lora-qwen": build_tiny_vlm(folder / "qwen", kind="qwen2_5_vl", scale=1.5),
        "windows-recomputed": build_family("gemma3", folder / "gemma3"),
        "states": build_family("qwen3_5", folder / "qwen3_5"),
    }
    cases = {}
    for name, changes in CASES.items():
        model = models.get(name, tiny)
        steps = steps_of(model, prompts, rows_of, 3)
        if name == "broken-step":
            steps[1][0]["engine_logprobs"] = [[float("nan")] * len(one) for one in steps[1][0]["responses"]]
        spec = json.loads(make_spec(model, prompts, micro_batch_tokens=80, **changes).model_dump_json())
        cases[name] = {"name": name, "spec": spec, "steps": steps, "save_after": 2}
    for out in (alone, two):
        out.mkdir()
    for case in cases.values():
        rank_work.train(case, alone, ALONE)
    for name in ("full", "lora"):  # checkpoints of one process, restored by two ranks
        saved = str(alone / name / "checkpoints" / "step-00000002")
        case = {**cases[name], "name": f"{name}-restored", "restore": saved, "first": 3, "save_after": None}
        cases[case["name"]] = {**case, "steps": cases[name]["steps"][2:]}
    cases["wrong"] = {
        **cases["full-restored"],
        "name": "wrong",
        "restore": str(alone / "lora/checkpoints/step-00000002"),
    }
    damaged = folder / "step-00000002"
    shutil.copytree(alone / "full/checkpoints/step-00000002", damaged)
    (damaged / "state.json").write_bytes(b" " * (damaged / "state.json").stat().st_size)
    cases["damaged"] = {**cases["full-restored"], "name": "damaged", "restore": str(damaged)}
    cases["few"] = {**cases["full"], "name": "few", "spec": {**cases["full"]["spec"], "groups_per_step": 1}}
    without_room = {"without_room": [100, 20_000], "steps": cases["full"]["steps"][:1], "save_after": 1}
    cases["without-room"] = {**cases["full"], **without_room, "name": "without-room"}
    first, second = steps_of(tiny, prompts, rows_of, 2)
    lost = first[3]["prompt"]
    cases["spoiled"] = {
        "name": "spoiled",
        "spec": cases["full"]["spec"] | {"prompts": str(write_prompts(folder / "spoiled", 12))},
        "steps": [first, [group for group in second if group["prompt"] != lost]],
        "spoiled": f"images/prompts.jsonl-{lost}.png",
    }
    refused = ("wrong", "damaged", "few")
    order = [*refused, *(name for name in cases if name not in refused)]
    (folder / "cases.json").write_text(json.dumps([cases[name] for name in order]))
    torchrun(folder / "cases.json", two)
    for name in ("full", "lora"):  # checkpoints of two ranks, restored by one process
        case = {**cases[f"{name}-restored"], "restore": str(two / name / "checkpoints" / "step-00000002")}
        rank_work.train(case, alone, ALONE)
    return Results(alone, two)


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_compute_the_same_as_one_process(results: Results, name: str) -> None:
    results.expect_equal(name)
    one, other = (json.loads((folder / f"{name}.json").read_text()) for folder in (results.alone, results.two))
    assert one["held"] == 1.0
    assert other["held"] == pytest.approx(0.5, abs=0.1), "each rank holds its half"
    for ours, theirs in zip(one["reports"], other["reports"], strict=True):
        for key in ("loss", "entropy", "kl", "grad_norm"):
            assert theirs[key] == pytest.approx(ours[key], rel=1e-4, abs=1e-7, nan_ok=True), key
        for key in ("micro_batch_tokens", "skipped", "lr", "advantages"):
            assert theirs[key] == ours[key], key
        assert theirs["sums"]["tokens"] == ours["sums"]["tokens"] > 0
        objective = ours["sums"]["objective"]
        assert theirs["sums"]["objective"] == pytest.approx(objective, rel=1e-4, abs=1e-6, nan_ok=True)
    assert [report["skipped"] for report in other["reports"]] == [0, int(name == "broken-step"), 0]


@pytest.mark.parametrize("name", ["full", "lora"])
def test_another_number_of_ranks_restores_a_checkpoint(results: Results, name: str) -> None:
    assert len(list((results.two / name / "checkpoints" / "step-00000002").glob("shard-*"))) == 2
    results.expect_equal(f"{name}-restored", name)  # one to two
    results.expect_equal(name, f"{name}-restored")  # two to one


def test_two_ranks_export_the_same_model_as_one_process(results: Results) -> None:
    for name in ("full", "lora"):
        one, other = (
            AutoModelForImageTextToText.from_pretrained(folder / name / "final")
            for folder in (results.alone, results.two)
        )
        theirs = dict(other.named_parameters())
        for key, tensor in one.named_parameters():
            assert torch.allclose(tensor, theirs[key], rtol=1e-4, atol=1e-5), key


def test_a_picture_that_a_rank_cannot_read_costs_its_group_alone(results: Results) -> None:
    unusable = json.loads((results.two / "spoiled.unusable").read_text())
    assert list(unusable) == ["3"]
    assert "is not what was indexed" in unusable["3"]
    [report] = json.loads((results.two / "spoiled.json").read_text())["reports"]
    assert report["sums"]["tokens"] > 0, "both ranks went on with another step"


def test_a_checkpoint_without_room_is_written_when_there_is_room(results: Results) -> None:
    """Whichever file finds none, no rank waits for another that gave up."""
    [checkpoint] = (results.two / "without-room" / "checkpoints").iterdir()
    check_checksums(checkpoint, ALONE)
    assert (results.two / "without-room.json").exists(), "both ranks went on"


def test_a_wrong_checkpoint_or_too_few_groups_are_reported_and_end_no_rank(results: Results) -> None:
    wrong = (results.two / "wrong.error").read_text()
    assert re.search(r"tensors do not fit the model .* it belongs to another model or tuning", wrong)
    damaged = (results.two / "damaged.error").read_text()
    assert re.search(r"step-00000002: the SHA-256 of state.json is \w+…, it was written with", damaged)
    few = (results.two / "few.error").read_text()
    assert "are 1 groups for an update, too few for 2 ranks; raise groups_per_step or start fewer ranks" in few


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=30), st.integers(1, 8))
def test_groups_are_divided_evenly(sizes: list[int], ranks: int) -> None:
    parts = balanced_partition(sizes, ranks)
    assert sorted(index for part in parts for index in part) == list(range(len(sizes)))
    assert all(part == sorted(part) for part in parts)
    loads = [sum(sizes[index] for index in part) for part in parts]
    assert max(loads) <= sum(sizes) / ranks + max(sizes)
    assert all(parts) or len(sizes) < ranks
