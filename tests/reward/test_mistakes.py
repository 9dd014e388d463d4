"""Mistakes with ``mor-reward``: each is answered with what was got, what was wanted and what to do, before any work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.errors import Invalid, Unauthorized
from mor_core.service_addresses import HEADER, ROUTER
from mor_reward import function_scorer
from mor_reward.cli import app
from mor_reward.conformance import run_checks
from mor_reward.conformance.endpoint import Endpoint
from mor_reward.progress import ProgressLines
from mor_reward.router_registration import register
from typer.testing import CliRunner

WITHOUT_TORCH = """
import json, sys
from typer.testing import CliRunner
from mor_reward.cli import app
for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, arguments)
    print(json.dumps([done.exit_code, " ".join(done.output.split()), "torch" in sys.modules]))
"""
UPSTREAM = ["serve", "--upstream", "openrlhf", "--upstream-url", "http://127.0.0.1:9"]
TRAIN = ["train", "--backbone", "text", "--model", "hub/name"]


def before_torch(tmp_path: Path, commands: Sequence[Sequence[str]]) -> list[Any]:
    """Run commands in a process of their own; return status, output and whether PyTorch was loaded by then."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MOR_")}
    command = [sys.executable, "-c", WITHOUT_TORCH, json.dumps(commands)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
        env={**environment, "COLUMNS": "400"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def test_paths_and_upstreams_are_checked_before_pytorch_is_loaded(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "reward.json").write_text('{"format": "someone.else/2"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "reward.json").write_text("{")
    good = ["--data", str(rows)]
    expected = [
        ([*TRAIN, "--data", "nowhere.jsonl", "--out", "m"], "nowhere.jsonl: no such file; give a .jsonl or .parquet"),
        ([*TRAIN, "--data", "rows.csv", "--out", "m"], "rows.csv is a table in text (CSV); save it as JSON lines or"),
        ([*TRAIN, *good, "--out", "/proc/nowhere/m"], "--out /proc/nowhere/m cannot be written"),
        ([*TRAIN, *good, "--out", "rows.jsonl", "--overwrite"], "--out rows.jsonl is a file; give the name of a"),
        ([*TRAIN, *good, "--out", "other"], "other exists; choose another --out"),
        ([*TRAIN[:-1], "./none", *good, "--out", "m"], "--model ./none: no such folder; give the folder of a Hugging"),
        ([*TRAIN, *good, "--out", "m", "--lr", "0"], "lr: Input should be greater than 0"),
        (["evaluate", *good, "--model", "nowhere"], "nowhere has no reward.json; give a folder written by"),
        (["evaluate", *good, "--model", "other"], "got format 'someone.else/2', wanted 'mor.reward_model/1'; give a"),
        (["evaluate", *good, "--model", "broken"], "reward.json is not JSON; copy the folder again"),
        (["serve", "--model", "other"], "got format 'someone.else/2', wanted 'mor.reward_model/1'"),
        (["serve", "--function", "none.py:f"], "no file 'none.py'; write it as path/to/file.py:function"),
        ([*UPSTREAM, "--upstream-set", "nonsense=1"], "--upstream-set name=value (MOR_UPSTREAM_OPTIONS)"),
        ([*UPSTREAM, "--upstream-key-file", "nowhere"], "--upstream-key-file nowhere: "),
        ([*UPSTREAM, "--sees-pictures"], "the protocol 'openrlhf' carries texts only; leave --sees-pictures out"),
        (["convert", "rows.jsonl", "/proc/nowhere/rows.jsonl"], "TARGET /proc/nowhere/rows.jsonl cannot be written"),
        (["token", "--tokens-file", "t.json", "--secret-file", "/proc/nowhere/t"], "--secret-file /proc/nowhere/t"),
        (["token", "--tokens-file", "/proc/nowhere/t.json"], "/proc/nowhere"),
    ]
    found = before_torch(tmp_path, [command for command, _ in expected])
    for (command, message), (status, output, loaded) in zip(expected, found, strict=True):
        assert status in (1, 2), (command, output)
        assert message in output, command
        assert "Traceback" not in output
        assert not loaded, command
    assert not (tmp_path / "t.json").exists(), "no hash of a token that nobody has"


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("text", "does not fit the backbone text, which needs a model of text alone; give one, or --backbone vlm"),
        ("vlm", "does not fit the backbone vlm, which needs an image-text-to-text model; give one, or --backbone text"),
        ("vision", "takes no picture of 64 by 64 pixels"),
        ("encoder", "has no tokenizer that can be loaded"),
    ],
)
def test_a_checkpoint_of_another_kind_names_the_backbone_that_takes_it(
    backbone: str, message: str, tiny_vlm: Path, text_encoder: Path, vision_encoder: Path, colours: Path, tmp_path: Path
) -> None:
    size = ["--set", "image_size=64"]
    options = {
        "text": ["--backbone", "text", "--model", str(tiny_vlm)],
        "vlm": ["--backbone", "vlm", "--model", str(text_encoder)],
        "vision": ["--backbone", "dual-encoder", "--vision", str(text_encoder), "--text", str(text_encoder), *size],
        "encoder": [
            "--backbone",
            "dual-encoder",
            "--vision",
            str(vision_encoder),
            "--text",
            str(vision_encoder),
            *size,
        ],
    }[backbone]
    done = CliRunner().invoke(app, ["train", "--data", str(colours), "--out", str(tmp_path / "m"), *options])
    assert (done.exit_code, message in " ".join(done.output.split())) == (1, True), done.output


def conformance(reply: httpx.Response, token: str) -> None:
    """Check a service that answers everything with ``reply``."""
    transport = httpx.MockTransport(lambda _: reply)
    with closing(Endpoint("http://reward", token, timeout_s=5, transport=transport)) as endpoint:
        list(run_checks(endpoint))


@pytest.mark.parametrize(("token", "message"), [("wrong", "refuses the token"), ("", "none was given")])
def test_a_wrong_secret_is_one_error_and_no_broken_clause(token: str, message: str) -> None:
    with pytest.raises(Unauthorized, match=f"{message} .*; give --secret-file the file that") as refused:
        conformance(httpx.Response(401), token)
    assert "wrong" not in str(refused.value)


def test_an_address_of_another_service_is_named() -> None:
    router = httpx.Response(404, headers={HEADER: ROUTER})
    with pytest.raises(Invalid, match="this is the address of the router, not of a reward service; this one belongs"):
        conformance(router, "token")


def test_training_in_a_file_tells_how_far_it_is() -> None:
    lines: list[str] = []
    reporter = ProgressLines(lines.append)
    reporter.phase("training", 4)
    for done in range(1, 5):
        reporter.advance(done, "epoch 1  loss 0.5")
    assert lines[0] == "training: 4 steps"
    assert lines[-1].startswith("training: 4 of 4  ")
    assert lines[-1].endswith("epoch 1  loss 0.5")


def test_secrets_are_files_of_text(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\xff\xfe\x00")
    done = CliRunner().invoke(
        app, ["conformance", "http://127.0.0.1:9", "--secret-file", str(tmp_path / "secret")], env={"COLUMNS": "400"}
    )
    assert (done.exit_code, "holds no token but other bytes" in done.output) == (1, True)
    (tmp_path / "secret").write_text("tök en")
    done = CliRunner().invoke(
        app, ["conformance", "http://127.0.0.1:9", "--secret-file", str(tmp_path / "secret")], env={"COLUMNS": "400"}
    )
    assert (done.exit_code, "does not hold one token" in done.output) == (1, True), done.output


def test_threads_and_functions_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    data, script = tmp_path / "rows.jsonl", tmp_path / "script.py"
    data.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n')
    threads = CliRunner().invoke(app, [*TRAIN, "--data", str(data), "--out", str(tmp_path / "o"), "--threads", "0"])
    assert (threads.exit_code, isinstance(threads.exception, SystemExit)) == (2, True)
    assert "--threads" in threads.output
    script.write_text("import sys\nsys.exit(3)\n")
    with pytest.raises(Invalid, match=r"script\.py ended the process; keep scripts out of it"):
        function_scorer._load(f"{script}:score")


@pytest.mark.parametrize("address", ["127.0.0.1:8100", "localhost:8100", "http://[::1", "http://", "x"])
def test_what_is_no_address_is_answered_with_the_form_of_one(address: str) -> None:
    with pytest.raises(Invalid, match="write it as http://host:port"):
        register(address, "t", name="n", url="http://x", domains="", secret="s", attempts=1)
    checked = CliRunner().invoke(app, ["conformance", address], env={"COLUMNS": "400"})
    assert (checked.exit_code, "Traceback" in checked.output) == (1, False)
    assert f"{address!r} is no address of a service; write it as http://host:port" in checked.output
