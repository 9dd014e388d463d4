"""Prompts of several sources, as one sequence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mor_core.errors import DataFileError, Invalid
from mor_core.runs import RunSpec
from mor_trainer.groups.source_prompts import read_source_prompts


def write(path: Path, *rows: tuple[str, str | None]) -> str:
    lines = [
        {"id": name, "prompt": f"What is {name}?", **({"domain": domain} if domain else {})} for name, domain in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def spec(*sources: dict[str, Any], **fields: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "model": "/m", "sources": sources, **fields})


def test_sources_select_files_and_domains_and_keep_ids_apart(tmp_path: Path) -> None:
    mixed = write(tmp_path / "a.jsonl", ("1", "chart"), ("2", "medical"), ("3", "chart"), ("4", None))
    other = write(tmp_path / "b.jsonl", ("1", "chart"), ("2", None))
    prompts = read_source_prompts(
        spec(
            {"name": "scans", "prompts": mixed, "domain": "medical"},
            {"name": "charts", "prompts": mixed, "domain": "chart"},
            {"name": "other", "prompts": other},
            {"name": "again", "prompts": other},
        )
    )
    assert prompts.rows == (1, 2, 2, 2)
    names = ["scans/2", "charts/1", "charts/3", "other/1", "other/2", "again/1", "again/2"]
    assert [prompt.id for prompt in prompts] == names
    assert len(prompts) == len(names)
    assert (prompts[-1].id, [prompt.id for prompt in prompts[1:3]]) == ("again/2", names[1:3])
    assert prompts[2].messages[0].text == "What is 3?"
    with pytest.raises(IndexError):
        prompts[7]


def test_a_run_with_one_file_keeps_its_ids(tmp_path: Path) -> None:
    prompts = read_source_prompts(spec(prompts=write(tmp_path / "a.jsonl", ("1", None), ("2", "x"))))
    assert [prompt.id for prompt in prompts] == ["1", "2"]


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    mixed = write(tmp_path / "a.jsonl", ("1", "chart"), ("2", "medical"))
    bare = write(tmp_path / "b.jsonl", ("1", None))
    with pytest.raises(Invalid, match="source 's': no row has the domain 'charts'; the file has 'chart', 'medical'"):
        read_source_prompts(spec({"name": "s", "prompts": mixed, "domain": "charts"}))
    with pytest.raises(Invalid, match="the file has no domain labels: leave it out"):
        read_source_prompts(spec({"name": "s", "prompts": bare, "domain": "charts"}))
    (tmp_path / "c.jsonl").write_text('{"prompt": 1}')
    with pytest.raises(DataFileError, match=r"c\.jsonl:1"):
        read_source_prompts(spec({"name": "s", "prompts": mixed}, {"name": "t", "prompts": str(tmp_path / "c.jsonl")}))
