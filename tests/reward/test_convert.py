"""``mor-reward convert`` writes published data as one plain file, and names what it cannot read."""

from __future__ import annotations

import json
from pathlib import Path

from mor_core.datafiles import read_preferences, read_prompts
from mor_reward import cli
from typer.testing import CliRunner

from tests.reward import reward_kit as kit


def convert(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["convert", *map(str, arguments)])
    return result.exit_code, " ".join(result.output.split())


def test_published_data_becomes_one_plain_file(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(kit.draw("red", 1))
    row = {"query": "<image>Which?", "photo": "red.png", "responses": ["a", "b"], "ranks": [2, 1], "licence": "MIT"}
    source, target = tmp_path / "rows.jsonl", tmp_path / "out" / "rows.parquet"
    source.write_text(json.dumps(row) + "\n")
    names = "prompt=query,images=photo,ignore=licence"
    assert convert(source, target, "--map", names) == (0, f"1 preferences in {target}")
    [found] = read_preferences(target)
    assert (found.chosen, found.rejected) == ("b", "a")
    assert list(found.prompt.images.values()) == [kit.draw("red", 1)]
    prompts = tmp_path / "prompts.jsonl"
    assert convert(source, prompts, "--map", names, "--prompts") == (0, f"1 prompts in {prompts}")
    assert [prompt.messages for prompt in read_prompts(prompts)] == [found.prompt.messages]
    status, shown = convert(source, tmp_path / "other.jsonl")
    assert status == 1
    assert "rows.jsonl:1: unknown columns 'licence', 'photo', 'query'" in shown


def test_invalid_rows_are_left_out_on_demand_and_named(tmp_path: Path) -> None:
    source, target = tmp_path / "rows.jsonl", tmp_path / "plain.jsonl"
    rows = [{"prompt": "Which?", "chosen": "a", "rejected": worse} for worse in ("a", "b", "")]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert convert(source, target)[0] == 1
    assert not target.exists()
    status, shown = convert(source, target, "--skip-invalid")
    assert status == 0
    assert f"left out: {source}:1: chosen and rejected are the same text" in shown
    assert f"left out: {source}:3: rejected: not a response" in shown
    assert len(read_preferences(target)) == 1
    source.write_text(json.dumps(rows[0]) + "\n")
    assert convert(source, tmp_path / "none.jsonl", "--skip-invalid")[0] == 1


def test_a_target_that_cannot_be_written_is_named_before_the_data_is_read(tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").touch()
    for target, told in (
        (tmp_path / "there.jsonl", "exists; choose another name"),
        (tmp_path / "rows.csv", "write to a .jsonl or .parquet file"),
    ):
        status, shown = convert(tmp_path / "no source", target)
        assert (status, told in shown) == (1, True)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}')
    status, shown = convert(tmp_path / "rows.jsonl", "/proc/pairs.jsonl")
    assert (status, "/proc/pairs.jsonl cannot be written" in shown) == (1, True)
