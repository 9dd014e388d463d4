"""Sources in a run's specification: one of both kinds of prompts, and weights with which something is drawn."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec
from pydantic import ValidationError

ROWS = {"name": "rows", "prompts": "/data/rows.jsonl"}


def spec(*sources: dict[str, Any], **fields: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "model": "/m", "sources": sources, **fields})


def points(*given: tuple[int, float]) -> list[dict[str, float]]:
    return [{"step": step, "weight": weight} for step, weight in given]


def test_sources_are_written_in_toml() -> None:
    found = RunSpec.model_validate(
        tomllib.loads(
            """
            name = "mixed"
            model = "/m"
            prompt_columns = "prompt=question"
            [[sources]]
            name = "charts"
            prompts = "/data/all.jsonl"
            domain = "chart"
            weight = 3
            [[sources]]
            name = "scans"
            prompts = "/data/all.jsonl"
            domain = "medical"
            order = "file"
            schedule = [{step = 0, weight = 1.0}, {step = 100, weight = 0.2}]
            [[sources]]
            name = "other"
            prompts = "/data/other.jsonl"
            columns = ""
            """
        )
    )
    assert [source.weights for source in found.sources] == [((0, 3),), ((0, 1), (100, 0.2)), ((0, 1),)]
    assert found.training_files() == (
        PromptFile("/data/all.jsonl", "prompt=question"),
        PromptFile("/data/other.jsonl", ""),
    )
    assert RunSpec.model_validate_json(found.model_dump_json()) == found, "as clients send it and run control stores it"


@pytest.mark.parametrize(
    ("sources", "fields", "message"),
    [
        ([], {}, r"neither prompts nor sources; give one of them"),
        ([ROWS], {"prompts": "/data/a.jsonl"}, "both prompts and sources"),
        ([ROWS, ROWS], {}, "two sources have the name 'rows'"),
        ([{**ROWS, "weight": 1, "schedule": points((0, 1))}], {}, "source 'rows' has both weight and schedule"),
        ([{**ROWS, "schedule": points((5, 1), (5, 2))}], {}, "has step 5 after step 5"),
        ([{**ROWS, "schedule": points((9, 1), (5, 2))}], {}, "has step 5 after step 9"),
        ([{**ROWS, "schedule": points((0, 1), (5, 0))}], {}, "every source has weight 0 at step 5"),
        (
            [{**ROWS, "schedule": points((3, 0), (9, 1))}, {**ROWS, "name": "b", "schedule": points((2, 1), (4, 0))}],
            {},
            None,
        ),
        (
            [{**ROWS, "schedule": points((4, 0), (9, 1))}, {**ROWS, "name": "b", "schedule": points((2, 1), (4, 0))}],
            {},
            "every source has weight 0 at step 4",
        ),
        ([{**ROWS, "weight": 0}], {}, "weight"),
        ([{**ROWS, "weight": 1e-3}, {**ROWS, "name": "b", "weight": 1e6}], {}, "source 'rows' has a share of 1e-09"),
        ([{**ROWS, "weight": 2e6}, {**ROWS, "name": "b", "weight": 200}], {}, None),
        ([{**ROWS, "weight": -1}], {}, "weight"),
        ([{**ROWS, "weight": float("nan")}], {}, "weight"),
        ([{**ROWS, "weight": float("inf")}], {}, "weight"),
        ([{**ROWS, "schedule": points((10**6, 1))}], {}, "step"),
        ([{**ROWS, "name": "a/b"}], {}, "name"),
        ([{**ROWS, "prompts": ""}], {}, "prompts"),
        ([{**ROWS, "order": "random"}], {}, "order"),
        ([{**ROWS, "surprise": 1}], {}, "surprise"),
    ],
)
def test_what_cannot_be_drawn_from_is_refused(
    sources: list[dict[str, Any]], fields: dict[str, Any], message: str | None
) -> None:
    if message is None:
        spec(*sources, **fields)
        return
    with pytest.raises(ValidationError, match=message):
        spec(*sources, **fields)
