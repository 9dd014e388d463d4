"""The check of a data set names every bad row, whatever is wrong with it, and ends."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from mor_client.cli import app
from mor_core.datafiles import scan_prompts
from mor_core.errors import Invalid
from mor_core.prompt_check import PromptCheck, RowProblem
from mor_core.prompt_limits import PromptLimits
from PIL import Image
from typer.testing import CliRunner

from tests.tiny_models import build_tiny_vlm


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_vlm(tmp_path_factory.mktemp("checked")))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def picture(width: int = 40, height: int = 30) -> str:
    content = io.BytesIO()
    Image.new("RGB", (width, height), (9, 99, 199)).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def found(check: PromptCheck) -> tuple[int, list[RowProblem]]:
    parts = list(check.run())
    return sum(part.rows for part in parts), sorted(
        (bad for part in parts for bad in part.bad), key=lambda bad: bad.line
    )


BROKEN_PNG = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\nnothing").decode()
ROWS: list[tuple[Any, str | None]] = [
    ({"id": "good", "prompt": "How many?", "images": [picture()]}, None),
    ({"id": "words", "prompt": [{"role": "user", "content": "word " * 400}]}, "prompt and response together may have"),
    ({"id": "many", "prompt": "What?", "images": [picture(), picture(), picture()]}, "at most 2 are allowed"),
    ({"id": "broken", "prompt": "What?", "images": [BROKEN_PNG]}, "image"),
    ({"id": "empty", "prompt": []}, "give a string or a non-empty list"),
    ("{", "JSON"),
    ({"id": "good", "prompt": "Twice"}, "is also used in line 1"),
    ({"id": "last", "prompt": "Fine <image>", "images": [picture()]}, None),
]


def test_every_bad_row_is_named_with_its_line_and_reason(tmp_path: Path, model: str) -> None:
    data = write(tmp_path / "prompts.jsonl", *(row for row, _ in ROWS))
    rows, bad = found(PromptCheck(data, model=model, limits=PromptLimits(300, 2, 16), processes=2))
    assert rows == len(ROWS)
    wanted = {line: problem for line, (_, problem) in enumerate(ROWS, 1) if problem is not None}
    told = {one.line: one.problem for one in bad}
    assert set(told) == set(wanted), told
    for line, problem in told.items():
        assert wanted[line] in problem, problem
    assert all(one.file == str(data) for one in bad)


def test_without_a_model_rows_are_read_and_counted(tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", *(row for row, _ in ROWS))
    rows, bad = found(PromptCheck(data, limits=PromptLimits(images=2)))
    assert rows == len(ROWS)
    assert [one.id for one in bad] == ["many", "broken", "empty", "", "good"]


def test_a_mistake_is_told_before_the_model_is_loaded(tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", *({"id": str(n), "prompt": 5} for n in range(3)))
    first = next(PromptCheck(data, model=str(tmp_path / "no-such-model")).run())
    assert first.bad[0].line == 1


def test_a_model_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", {"prompt": "fine"})
    with pytest.raises(Invalid, match="no-such-model"):
        list(PromptCheck(data, model=str(tmp_path / "no-such-model")).run())


def test_data_without_a_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no row that gives prompts"):
        list(PromptCheck(write(tmp_path / "prompts.jsonl")).run())


def test_a_scan_goes_on_after_a_bad_row(tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", {"prompt": 5}, {"prompt": "fine"})
    assert [(row.value is None, row.problem is None) for row in scan_prompts(data)] == [(True, False), (False, True)]


def test_the_command_lists_bad_rows_and_ends_with_status_1(tmp_path: Path) -> None:
    data = write(tmp_path / "prompts.jsonl", {"id": "a", "prompt": "fine"}, {"id": "b", "prompt": 5})
    runner = CliRunner()
    done = runner.invoke(app, ["check", str(data)])
    assert done.exit_code == 1
    assert f"{data}:2 b: prompt: not a conversation" in done.stdout
    assert "1 of 2 rows are bad" in done.stdout
    as_json = runner.invoke(app, ["check", str(data), "--json"])
    assert json.loads(as_json.stdout)["found"][0]["line"] == 2
    good = runner.invoke(app, ["check", str(write(tmp_path / "good.jsonl", {"prompt": "fine"}))])
    assert (good.exit_code, "all 1 rows are good" in good.stdout) == (0, True)
    missing = runner.invoke(app, ["check", str(tmp_path / "none.jsonl")])
    assert missing.exit_code == 2
    assert "no such file" in missing.stderr


def test_the_command_checks_the_prompts_of_pairs(tmp_path: Path) -> None:
    pair = {"prompt": "Which?", "chosen": "this", "rejected": "this"}
    done = CliRunner().invoke(app, ["check", "--preferences", str(write(tmp_path / "pairs.jsonl", pair))])
    assert done.exit_code == 1
    assert "chosen and rejected are the same text" in done.stdout


def test_the_command_checks_every_file_of_a_run(tmp_path: Path) -> None:
    for name in ("a", "b", "evaluation"):
        write(tmp_path / f"{name}.jsonl", {"id": name, "question": "fine"}, {"id": f"bad-{name}", "question": 5})
    spec = tmp_path / "run.toml"
    sources = "".join(
        f'\n[[sources]]\nname = "{place}"\nprompts = "{tmp_path}/{name}.jsonl"' for place, name in enumerate("aba")
    )
    fields = 'name = "r"\nmodel = "/m"\nprompt_columns = "prompt=question"\n'
    spec.write_text(fields + f'evaluation_prompts = "{tmp_path}/evaluation.jsonl"\n' + sources)
    done = CliRunner().invoke(app, ["check", str(spec)])
    assert done.exit_code == 1
    assert "3 of 6 rows are bad" in done.stdout, "each file once"
    assert all(f"{name}.jsonl:2 bad-{name}" in done.stdout for name in ("a", "b", "evaluation"))
    spec.write_text(fields)
    refused = CliRunner().invoke(app, ["check", str(spec)])
    assert refused.exit_code == 2
    assert "neither prompts nor sources" in refused.stderr
    mapped = CliRunner().invoke(app, ["check", str(spec), "--map", "prompt=question"])
    assert "write prompt_columns in the specification" in mapped.stderr


def test_the_command_names_a_domain_that_no_row_has(tmp_path: Path) -> None:
    data = write(tmp_path / "a.jsonl", {"prompt": "fine", "domain": "chart"}, {"prompt": 5, "domain": "map"})
    sources = "".join(
        f'[[sources]]\nname = "{name}"\nprompts = "{data}"\n{domain}'
        for name, domain in (("x", ""), ("y", 'domain = "chart"\n'), ("z", 'domain = "map"\n'))
    )
    (tmp_path / "run.toml").write_text(f'name = "r"\nmodel = "/m"\n{sources}')
    done = CliRunner().invoke(app, ["check", str(tmp_path / "run.toml")])
    assert done.exit_code == 2
    assert "no row that can be read has the domain 'map' of a source" in done.stderr


def test_the_command_has_the_limits_of_the_run_and_the_model(
    tmp_path: Path, model: str, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "word " * count} for count in (5, 200, 5000)]
    data = write(tmp_path / "a.jsonl", *rows)
    fields = f'name = "r"\nmodel = "{model}"\nprompts = "{data}"\nmicro_batch_tokens = 500\n'
    (tmp_path / "run.toml").write_text(fields + "sampling = {max_tokens = 8}\n")
    arguments = ["check", str(tmp_path / "run.toml"), "--model", model, "--no-family", "--processes", "1", "--json"]
    told = json.loads(CliRunner().invoke(app, arguments).stdout.splitlines()[-1])
    assert not capfd.readouterr().err, "the libraries of other processes warn in nobody's terminal"
    assert [row["line"] for row in told["found"]] == [2, 3]
    assert "micro_batch_tokens=500" in told["found"][0]["problem"]
    assert "prompt and response together may have 2048" in told["found"][1]["problem"]
