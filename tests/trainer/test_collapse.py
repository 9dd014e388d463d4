"""Real collapses: a tiny policy whose reward model loves one word comes to say nothing else, and run control pauses it.

The runs are bound by steps, not by time: how fast a machine samples decides nothing.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.kit import TOKENS, Processes
from tests.trainer.stages import Rule, Stages, share_of_even_tokens, until
from tests.trainer.watching import create, finish, points, snapshot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]

COLLAPSE = {"kl_over_bound", "entropy_collapse", "identical_responses"}
SHORT: dict[str, Any] = {
    "group_size": 8,
    "sampling": {"max_tokens": 4},
    "algorithm": {"kl": {"beta": 1e-4}},
    "evaluation_every": 5,
    "checkpoint_every": 5,
    "keep_checkpoints": 1,
}
PATIENT = {"MOR_RUN_LEASE_S": "60", "MOR_CONTROL_LEASE_S": "30", "MOR_LEASE_S": "60", "MOR_GROUP_TIMEOUT_S": "120"}
"""Waits with which nobody is taken for dead on a busy machine."""


def love_of_one_word(ids: tuple[int, ...], text: str) -> float:
    """Score a response by how near its tokens are to one word, whatever was asked."""
    del text
    return -sum(math.log1p(abs(token - 40)) for token in ids) / len(ids)


def stages_of(processes: Processes, redis_url: str, tiny: Path, rule: Rule) -> Stages:
    return Stages(redis_url, tiny, rule, TOKENS["service"], lambda: processes.address)


def names_of_alerts(processes: Processes, run: str) -> set[str]:
    with processes.client("viewer") as http:
        return {alert["name"] for alert in http.get("/v1/alerts", params={"run": run}).raise_for_status().json()}


@pytest.mark.parametrize(
    ("guards", "expected"),
    [({}, {"kl_over_bound"}), ({"kl": "alert"}, {"entropy_collapse", "identical_responses"})],
    ids=["far from the reference", "one word"],
)
def test_a_collapse_pauses_the_run_and_keeps_its_best_checkpoint(
    processes: Processes, redis_url: str, tiny: Path, prompts: Path, guards: dict[str, Any], expected: set[str]
) -> None:
    processes.environment |= PATIENT
    processes.serve()
    with stages_of(processes, redis_url, tiny, love_of_one_word):
        run = create(
            processes, model=tiny, prompts=prompts, evaluation_prompts=str(prompts), steps=150,
            optimiser={"lr": 5e-3, "warmup_steps": 0}, guards={"window": 5, **guards}, **SHORT,
        )  # fmt: skip
        processes.work()
        over = ("paused", "finished", "failed")
        until(lambda: snapshot(processes, run)["state"] in over, 1800, "the run paused or over")
        found = snapshot(processes, run)
        assert found["state"] == "paused", (found, points(processes, run)[-3:])
        assert found["error"].startswith("paused by guards.")
        assert "The best checkpoint by evaluation" in found["error"]
        assert names_of_alerts(processes, run) & expected
        kept = int(found["error"].partition("is that of step ")[2].partition(",")[0])
        folder = processes.runs_dir / run / "checkpoints"
        assert (folder / f"step-{kept:08d}" / "state.json").exists()
        assert len(list(folder.glob("step-*"))) <= 4


def test_a_healthy_run_is_not_paused(processes: Processes, redis_url: str, tiny: Path, prompts: Path) -> None:
    processes.environment |= PATIENT
    processes.serve()
    with stages_of(processes, redis_url, tiny, share_of_even_tokens):
        run = create(
            processes, model=tiny, prompts=prompts, evaluation_prompts=str(prompts), steps=30,
            guards={"window": 5}, **SHORT,
        )  # fmt: skip
        processes.work("--once")
        finish(processes, run, 1800)
        assert not names_of_alerts(processes, run) & COLLAPSE
        history = points(processes, run)
        learned = [sum(point["reward_mean"] for point in part) / 10 for part in (history[:10], history[-10:])]
        assert learned[1] > learned[0], learned
