"""Grading: intervals, best-of-k, and errors that name the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from three_domains.grade import GradeError, grade, read_responses


def gold_row(name: str, side: str) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": "On which side is the mark?"}]
    gold = {"domain": "medical", "task": "side", "side": side, "region": "frontal"}
    return {"id": name, "domain": "medical", "prompt": [{"role": "user", "content": content}], "gold": gold}


def test_first_response_counts_and_any_counts_for_best_of_k() -> None:
    gold = [gold_row("a", "left"), gold_row("b", "left"), gold_row("c", "right"), gold_row("d", "right")]
    report = grade(
        gold, {"a": ["left", "right"], "b": ["right", "left"], "c": ["left", "left"], "d": ["right", "right"]}
    )
    medical = report["domains"]["medical"]
    assert (medical["accuracy"], medical["best_of_k"], medical["mean_of_k"], medical["k"]) == (0.5, 0.75, 0.5, 2)
    assert medical["interval_95"][0] < 0.5 < medical["interval_95"][1]
    assert report["mean_accuracy"] == 0.5
    assert set(report["domains"]) == {"medical"}


def test_missing_and_unknown_ids() -> None:
    gold = [gold_row("a", "left"), gold_row("b", "left")]
    with pytest.raises(GradeError, match=r"1 questions have no response \(first: b\)"):
        grade(gold, {"a": ["left"]})
    with pytest.raises(GradeError, match="unknown id z"):
        grade(gold, {"a": ["left"], "b": ["left"], "z": ["left"]})


@pytest.mark.parametrize(
    "line", ["{", '{"id": "b"}', '{"id": "b", "responses": []}', '{"id": "a", "responses": ["x"]}']
)
def test_bad_responses_name_the_line(line: str, tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"id": "a", "responses": ["x"]}) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(GradeError, match=r"r\.jsonl:2"):
        read_responses(file)
