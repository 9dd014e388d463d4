"""The tables and ``report.json`` have the same figures, and mark unknown values."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from three_domains import report

SPEC = {"groups_per_step": 16, "group_size": 8}
SWAPS = {"count": 5.0, "mean_seconds": 0.25, "share_within_1_s": 0.8}
SNAPSHOT = {"id": "run-1", "step": 4, "final": "/state/runs/run-1/final"}


def graded(accuracy: float) -> dict[str, Any]:
    low, high = accuracy - 0.05, accuracy + 0.05
    return {"n": 360, "accuracy": accuracy, "interval_95": [low, high]}


def point(step: int, kl: float | None, rewards: dict[str, float | None], **domains: dict[str, float]) -> dict[str, Any]:
    return {
        "step": step,
        "step_seconds": 2.0 + step,
        "seconds": {"waiting": 1.5 + step, "optimiser": 0.5},
        "kl": kl,
        "importance_ratio_max": None if kl is None else 1 + kl,
        "reward_mean": 0.1 * step,
        "clients": {name: {"reward_mean": reward} for name, reward in rewards.items()},
        "domains": {name: {"weights": weights} for name, weights in domains.items()},
    }


POINTS = [
    point(1, None, {"detail": 0.25, "chart": None}, scenes={"detail": 0.75, "chart": 0.25}),
    point(2, None, {"detail": 0.75, "chart": None}, scenes={"detail": 0.5, "chart": 0.5}, charts={"detail": 0.25}),
    point(3, 0.125, {"detail": 1.0, "chart": -0.5}, scenes={"detail": 1.0, "chart": 0.0}),
    point(4, 0.375, {"detail": 2.0}),
]


def summary(points: list[dict[str, Any]] = POINTS, swaps: dict[str, Any] = SWAPS) -> dict[str, Any]:
    return report.summarise(
        spec=SPEC,
        snapshot=SNAPSHOT,
        points=points,
        swaps=swaps,
        fit={"held_out_accuracy": 0.9},
        accuracy={"base": {"scenes": graded(0.25)}, "aligned": {"scenes": graded(0.75)}},
        seconds={"align": 12.34},
        state=Path("/state"),
    )


def shown(found: dict[str, Any]) -> dict[str, list[str]]:
    """Print a report; return the cells of every table row by their first cell, and the lines below the tables."""
    text = io.StringIO()
    report.show(Console(file=text, width=200), found)
    lines = [line.strip() for line in text.getvalue().splitlines()]
    rows = [[cell.strip() for cell in re.split("[│┃]", line)[1:-1]] for line in lines if line[:1] in ("│", "┃")]
    return {row[0]: row[1:] for row in rows} | {"below": [line for line in lines if line[:1] not in "│┃┏┡└"]}


def test_the_report_has_means_over_the_first_and_the_last_steps() -> None:
    found = summary()
    assert found["client_rewards"] == {"chart": [None, -0.5], "detail": [0.5, 1.5]}
    assert found["gate_weights"] == {
        "charts": {"chart": None, "detail": 0.25},
        "scenes": {"chart": 0.25, "detail": 0.75},
    }
    run = found["run"]
    assert (run["kl"], run["step_seconds"], run["importance_ratio_max"]) == (0.25, 4.5, 1.375)
    assert run["reward"] == pytest.approx([0.15, 0.35])
    assert sum(run["time_shares"].values()) == pytest.approx(1)
    assert found["phase_seconds"] == {"align": 12.3}


def test_the_table_shows_the_figures_of_the_file(tmp_path: Path) -> None:
    report.write(tmp_path / "report.json", summary())
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    found = json.loads((tmp_path / "report.json").read_text())
    assert found == json.loads(json.dumps(summary()))
    printed = shown(found)
    assert printed["scenes"] == ["360", "25.0 % (20.0-30.0)", "75.0 % (70.0-80.0)", "+50.0"]
    assert printed["client"] == ["first steps", "last steps", "weight, charts", "weight, scenes"]
    assert printed["detail"] == ["+0.50", "+1.50", "0.25", "0.75"]
    below = "\n".join(printed["below"])
    assert "4 steps of 16 prompts x 8 responses, 4.50 s per step (median); KL to the reference 0.250 nats" in below
    assert "waiting 89%, optimiser 11%" in below
    assert "5 weight swaps of 0.25 s in the mean, 80% within 1 s" in below
    assert "checkpoint: /state/runs/run-1/final" in below


def test_an_unknown_value_is_null_in_the_file_and_a_dash_in_the_table() -> None:
    unknown = [point(step, None, {"chart": None}, charts={}) for step in (1, 2)]
    none = {"count": 0.0, "mean_seconds": None, "share_within_1_s": None}
    found = json.loads(json.dumps(summary(unknown, none)))
    assert found["client_rewards"] == {"chart": [None, None]}
    assert found["gate_weights"] == {"charts": {"chart": None}}
    assert (found["run"]["kl"], found["run"]["importance_ratio_max"]) == (None, None)
    printed = shown(found)
    assert printed["chart"] == ["–", "–", "–"]  # noqa: RUF001
    assert "KL to the reference – nats" in "\n".join(printed["below"])  # noqa: RUF001
    assert "no weights were swapped" in printed["below"]
    assert "None" not in str(printed)


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        (None, "running, waiting for the first step"),
        ({"reward_mean": None, "kl": None}, "running, waiting for the first step"),
        ({"reward_mean": -0.25, "kl": None}, "running  reward -0.250"),
        ({"reward_mean": 0.25, "kl": 0.0}, "running  reward +0.250  KL +0.000"),
    ],
)
def test_a_run_on_one_line(metrics: dict[str, Any] | None, line: str) -> None:
    assert report.one_line({"state": "running", "metrics": metrics}) == line


def test_an_interrupted_report_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    report.write(path, {"figure": 1})
    with pytest.raises(TypeError):
        report.write(path, {"figure": object()})
    assert json.loads(path.read_text()) == {"figure": 1}
    assert list(tmp_path.iterdir()) == [path]
