"""Prompts of several sources, as one sequence."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from mor_core.datafiles import Prompt
from mor_core.errors import DataFileError, Invalid
from mor_core.prompt_index import open_prompts
from mor_core.prompt_sources import PromptFile
from mor_core.runs import RunSpec
from mor_core.wire import Message, WeightsRef
from mor_trainer.groups.prompt_record import prompt_record
from mor_trainer.prompts.source_prompts import SourcePrompts, training_prompts


def write(path: Path, *rows: tuple[str, str | None]) -> str:
    lines = [
        {"id": name, "prompt": f"What is {name}?", **({"domain": domain} if domain else {})} for name, domain in rows
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


def spec(*sources: dict[str, Any], **fields: Any) -> RunSpec:
    return RunSpec.model_validate({"name": "r", "model": "/m", "sources": sources, **fields})


def test_prompts_are_public_where_their_source_or_the_run_says_so() -> None:
    sources: list[dict[str, Any]] = [{"name": "a", "prompts": "/a"}, {"name": "b", "prompts": "/b", "public": True}]
    mixed = spec(*sources)
    assert [mixed.is_public(name, evaluation=False) for name in ("a/1", "b/1", "b/x/1", "b")] == [
        False,
        True,
        True,
        True,
    ]
    assert not mixed.is_public("b/1", evaluation=True), "the id of an evaluation prompt is its own"
    whole = spec(*sources, public_prompts=True)
    assert whole.is_public("a/1", evaluation=False)
    assert whole.is_public("b/1", evaluation=True)
    weights = WeightsRef(version=0)
    prompt = Prompt(id="b/1", messages=(Message(role="user", content="?"),), images={}, domain="chart")
    issue: dict[str, Any] = {"group_id": "g", "attempt": 0, "weights": weights, "run_attempt": 1}
    record = prompt_record("r", mixed, prompt, evaluation=False, **issue)
    assert (record.public, record.domain) == (True, "chart")
    dumped = prompt_record("r", mixed, prompt, evaluation=True, **issue).model_dump(mode="json")
    assert "public" not in dumped, "former rollout services and routers read the record"


def prompts_of(
    folder: Path, wanted: RunSpec, left_out: Mapping[PromptFile, Collection[int]] | None = None
) -> SourcePrompts:
    files = {
        file: open_prompts(Path(file.path), file.columns, index_dir=folder / "index")
        for file in wanted.training_files()
    }
    return training_prompts(wanted, files, left_out or {})


def test_sources_select_files_and_domains_and_keep_ids_apart(tmp_path: Path) -> None:
    mixed = write(tmp_path / "a.jsonl", ("1", "chart"), ("2", "medical"), ("3", "chart"), ("4", None))
    other = write(tmp_path / "b.jsonl", ("1", "chart"), ("2", None))
    prompts = prompts_of(
        tmp_path,
        spec(
            {"name": "scans", "prompts": mixed, "domain": "medical"},
            {"name": "charts", "prompts": mixed, "domain": "chart"},
            {"name": "other", "prompts": other},
            {"name": "again", "prompts": other},
        ),
    )
    assert prompts.rows == (1, 2, 2, 2)
    names = ["scans/2", "charts/1", "charts/3", "other/1", "other/2", "again/1", "again/2"]
    assert [prompt.id for prompt in prompts] == list(prompts.ids) == names
    assert list(prompts.domains) == ["medical", "chart", "chart", "chart", None, "chart", None]
    assert len(prompts) == len(names)
    assert (prompts[-1].id, [prompt.id for prompt in prompts[1:3]]) == ("again/2", names[1:3])
    assert prompts[2].messages[0].text == "What is 3?"
    with pytest.raises(IndexError):
        prompts[7]
    elsewhere = SourcePrompts.at(prompts.places)
    assert (elsewhere.rows, list(elsewhere)) == (prompts.rows, list(prompts))


def test_rows_that_are_left_out_are_in_no_source(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ("1", "x"), ("2", "x"), ("3", None), ("4", "x"))
    whole = spec(prompts=path)
    [file] = whole.training_files()
    assert list(prompts_of(tmp_path, whole, {file: [0, 3]}).ids) == ["2", "3"]
    parts = spec({"name": "x", "prompts": path, "domain": "x"}, {"name": "all", "prompts": path})
    assert list(prompts_of(tmp_path, parts, {file: [0, 3]}).ids) == ["x/2", "all/2", "all/3"]
    with pytest.raises(Invalid, match="source 'x' has no prompt that can be drawn"):
        prompts_of(tmp_path, parts, {file: [0, 1, 3]})


def test_a_run_with_one_file_keeps_its_ids(tmp_path: Path) -> None:
    prompts = prompts_of(tmp_path, spec(prompts=write(tmp_path / "a.jsonl", ("1", None), ("2", "x"))))
    assert [prompt.id for prompt in prompts] == ["1", "2"]


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    mixed = write(tmp_path / "a.jsonl", ("1", "chart"), ("2", "medical"))
    bare = write(tmp_path / "b.jsonl", ("1", None))
    with pytest.raises(Invalid, match="source 's': no row has the domain 'charts'; the file has 'chart', 'medical'"):
        prompts_of(tmp_path, spec({"name": "s", "prompts": mixed, "domain": "charts"}))
    with pytest.raises(Invalid, match="the file has no domain labels: leave it out"):
        prompts_of(tmp_path, spec({"name": "s", "prompts": bare, "domain": "charts"}))
    (tmp_path / "c.jsonl").write_text('{"prompt": 1}')
    with pytest.raises(DataFileError, match=r"c\.jsonl:1"):
        prompts_of(tmp_path, spec({"name": "s", "prompts": mixed}, {"name": "t", "prompts": str(tmp_path / "c.jsonl")}))
