"""Every program's group of commands: ``--json`` in any place, and a sentence for what no command expects."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import mor_client.cli
import mor_reward.cli
import mor_rollout.cli
import mor_router.cli
import mor_trainer.cli
import pytest
import typer
from mor_core.command_group import CommandGroup
from mor_core.errors import Invalid
from typer.testing import CliRunner

app = typer.Typer(cls=CommandGroup)
inner = typer.Typer(cls=CommandGroup)
app.add_typer(inner, name="thing")
PROGRAMS = [mor_client.cli, mor_reward.cli, mor_rollout.cli, mor_router.cli, mor_trainer.cli]


@app.callback()
def options(config: Annotated[Path | None, typer.Option()] = None) -> None:
    """Take an option before the command."""


@inner.command("show")
def show(name: str, *, as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
    """Show one thing."""
    match name:
        case "forbidden":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/secret")
        case "invalid":
            raise Invalid("got 1, wanted 2; write 2")
        case "folder":
            Path("/").read_text()
    typer.echo(f"{name} {as_json}")


@inner.command("other")
def other() -> None:
    """Have no JSON."""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "thing", "show", "a"],
        ["thing", "--json", "show", "a"],
        ["thing", "show", "--json", "a"],
        ["thing", "show", "a", "--json"],
        ["--config", "x", "--json", "thing", "show", "a"],
        ["--json", "--config", "x", "thing", "show", "--", "a"],
    ],
    ids=" ".join,
)
def test_json_may_stand_in_any_place(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (0, "a True\n"), done.output


def test_json_is_refused_where_there_is_none_and_an_argument_may_have_its_name() -> None:
    refused = CliRunner().invoke(app, ["--json", "thing", "other"])
    assert (refused.exit_code, "No such option" in refused.output) == (2, True)
    assert CliRunner().invoke(app, ["thing", "show", "--", "--json"]).stdout == "--json False\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("forbidden", "/etc/secret: Permission denied; give a path that you may use"),
        ("invalid", "got 1, wanted 2; write 2"),
        ("folder", "/: Is a directory; give a file, not a folder"),
    ],
)
def test_an_error_that_no_command_expects_is_a_sentence(name: str, sentence: str) -> None:
    plain = CliRunner().invoke(app, ["thing", "show", name])
    assert (plain.exit_code, plain.stdout) == (2, "")
    assert plain.stderr.startswith(f"error: {sentence}")
    assert "Traceback" not in plain.output
    as_json = CliRunner().invoke(app, ["--json", "thing", "show", name])
    assert as_json.exit_code == 2
    assert json.loads(as_json.stderr)["error"]["detail"].startswith(sentence)


def test_wrong_usage_is_json_where_that_is_asked_for() -> None:
    done = CliRunner().invoke(app, ["thing", "show", "--json"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "Missing argument" in json.loads(done.stderr)["error"]["detail"]
    misspelt = CliRunner().invoke(app, ["thing", "shwo", "x"])
    assert (misspelt.exit_code, "show" in misspelt.output) == (2, True)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_group_of_every_program_is_such_a_group(program: object) -> None:
    def check(command: object) -> None:
        if hasattr(command, "commands"):
            assert isinstance(command, CommandGroup), command
            for part in command.commands.values():
                check(part)

    check(typer.main.get_command(program.app))  # type: ignore[attr-defined]


def test_an_interrupt_ends_quietly_with_its_own_status(tmp_path: Path) -> None:
    code = (
        "import signal, time, typer\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "from pathlib import Path\nfrom mor_core.command_group import CommandGroup\n"
        "app = typer.Typer(cls=CommandGroup)\n@app.callback()\ndef options(): ...\n"
        "@app.command()\ndef wait():\n    Path('ready').touch()\n    time.sleep(600)\napp(['wait'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        while not (tmp_path / "ready").exists():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=120) == ("", "")
        assert process.returncode == 130
    finally:
        process.kill()
