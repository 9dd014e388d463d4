"""A real collapse: a tiny policy whose reward model loves one word says nothing else, and run control pauses it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.kit import TOKENS, Processes
from tests.trainer.stages import Rule, Stages, share_of_even_tokens
from tests.trainer.watching import alerts, create, finish, points, snapshot

pytestmark = pytest.mark.slow

COLLAPSE = {"kl_over_bound", "entropy_collapse", "identical_responses"}
FAST: dict[str, Any] = {
    "group_size": 8,
    "optimiser": {"lr": 3e-3, "warmup_steps": 0},
    "algorithm": {"kl": {"beta": 1e-4}},
    "evaluation_every": 5,
    "checkpoint_every": 5,
    "keep_checkpoints": 1,
}


def love_of_one_word(ids: tuple[int, ...], text: str) -> float:
    """Score a response by how near its tokens are to one word, whatever was asked."""
    del text
    return -sum(math.log1p(abs(token - 40)) for token in ids) / len(ids)


def stages_of(processes: Processes, redis_url: str, tiny: Path, rule: Rule) -> Stages:
    return Stages(redis_url, tiny, rule, TOKENS["service"], lambda: processes.address)


def test_a_collapse_pauses_the_run_and_keeps_its_best_checkpoint(
    processes: Processes, redis_url: str, tiny: Path, prompts: Path
) -> None:
    processes.serve()
    with stages_of(processes, redis_url, tiny, love_of_one_word):
        run = create(
            processes, model=tiny, prompts=prompts, evaluation_prompts=str(prompts), steps=2000,
            guards={"window": 5}, **FAST,
        )  # fmt: skip
        processes.work()
        deadline = time.monotonic() + 300
        while (found := snapshot(processes, run))["state"] != "paused":
            assert time.monotonic() < deadline, points(processes, run)[-3:]
            time.sleep(0.2)
        assert found["error"].startswith("paused by guards.")
        assert "The best checkpoint by evaluation" in found["error"]
        assert {alert["name"] for alert in alerts(processes, run)} & COLLAPSE
        kept = int(found["error"].partition("is that of step ")[2].partition(",")[0])
        folder = processes.runs_dir / run / "checkpoints"
        assert (folder / f"step-{kept:08d}" / "state.json").exists()
        assert len(list(folder.glob("step-*"))) <= 4


def test_a_healthy_run_is_not_paused(processes: Processes, redis_url: str, tiny: Path, prompts: Path) -> None:
    processes.serve()
    with stages_of(processes, redis_url, tiny, share_of_even_tokens):
        run = create(
            processes, model=tiny, prompts=prompts, evaluation_prompts=str(prompts), steps=30,
            guards={"window": 5}, **FAST,
        )  # fmt: skip
        processes.work("--once")
        assert finish(processes, run)["state"] == "finished"
        assert not {alert["name"] for alert in alerts(processes, run)} & COLLAPSE
