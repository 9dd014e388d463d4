"""Every command: an exception that nobody catches, its help and its options put no secret out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import mor_client.cli
import mor_reward.cli
import mor_rollout.cli
import mor_router.cli
import mor_trainer.cli
import pytest
import typer
from mor_core.hidden_secrets import SECRET_NAME
from typer.testing import CliRunner

from tests.secrecy.marks import fail, found

APPS = {
    "mor": mor_client.cli.app,
    "mor-reward": mor_reward.cli.app,
    "mor-rollout": mor_rollout.cli.app,
    "mor-router": mor_router.cli.app,
    "mor-trainer": mor_trainer.cli.app,
}


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the commands of a group, each with its words."""
    for name, part in getattr(command, "commands", {}).items():
        yield from leaves(part, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


COMMANDS = [(program, path) for program, app in APPS.items() for path, _ in leaves(typer.main.get_command(app))]


@pytest.mark.parametrize(
    ("program", "path"), COMMANDS, ids=lambda part: part if isinstance(part, str) else "-".join(part)
)
def test_an_exception_that_nobody_catches_shows_nothing(
    program: str, path: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard is in place before the command's own code and options."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    assert CliRunner().invoke(APPS[program], [*path, "--help"]).exit_code == 0
    try:
        fail()
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert "Quoting" in shown
    assert "in fail" in shown
    assert not found(shown)


def test_no_option_takes_a_secret_itself() -> None:
    """Other users see the arguments of a process, and shells record them."""
    for program, app in APPS.items():
        for path, command in leaves(typer.main.get_command(app)):
            for option in command.params:
                if SECRET_NAME.search(str(option.name)):
                    assert str(option.name).endswith(("_file", "_tokens")), (program, path, option.name)
