"""Tables: one line a row with whole cells in a pipe, and no folded id on any terminal."""

from __future__ import annotations

import io
import re

import pytest
from mor_core import terminal
from mor_core.terminal import TerminalConsole

RUN = "three-domains-20261129-121314-abcdef"
REASON = "the share of groups without any difference is over its bound"
ROWS = [(RUN, "[red]failed[/]", REASON), ("b", "ok", "-")]


def printed(width: int, *, tty: bool) -> list[str]:
    file = io.StringIO()
    console = TerminalConsole(file=file, width=width, force_terminal=tty, color_system=None)
    terminal.print_table(console, ("run", "state", "reason"), ROWS, prose=("reason",))
    return file.getvalue().splitlines()


@pytest.mark.parametrize("width", [10, 80, 300])
def test_a_pipe_gets_one_line_a_row_with_whole_cells(width: int) -> None:
    lines = printed(width, tty=False)
    assert [re.split(r" {2,}", line) for line in lines] == [
        ["run", "state", "reason"], [RUN, "failed", REASON], ["b", "ok", "-"],
    ]  # fmt: skip


@pytest.mark.parametrize("width", [20, 70, 80, 300])
def test_an_id_is_whole_on_every_terminal(width: int) -> None:
    lines = printed(width, tty=True)
    assert sum(RUN in line for line in lines) == 1
    assert " ".join(" ".join(lines).split()).count("bound") == 1


def test_words_between_colons_are_no_pictures() -> None:
    file = io.StringIO()
    console = TerminalConsole(file=file, width=80)
    console.print("hub:a:fire: no such split")
    terminal.print_table(console, ("data",), [("hub:a:fire:",)])
    terminal.print_fields(console, [("data", "hub:a:fire:")])
    assert file.getvalue().count("hub:a:fire:") == 3


def test_prose_is_folded_on_a_narrow_terminal_only() -> None:
    assert len(printed(300, tty=True)) == 3
    assert len(printed(80, tty=True)) > 3
    assert all(len(line) <= 80 for line in printed(80, tty=True))


def test_fields_are_one_line_each_and_control_characters_are_shown() -> None:
    file = io.StringIO()
    console = TerminalConsole(file=file, width=20, force_terminal=False)
    terminal.print_fields(console, [("run", RUN), ("error", "\x1b[2Jgone " * 10)])
    lines = file.getvalue().splitlines()
    assert lines[0] == f"run    {RUN}"
    assert len(lines) == 2
    assert "\x1b" not in file.getvalue()


def test_names_with_colons_and_brackets_stay_text() -> None:
    file = io.StringIO()
    console = TerminalConsole(file=file, width=80)
    console.print("hub:x: write hub:OWNER/NAME")
    console.print("3 pairs in /data[/red]/[bold].jsonl", soft_wrap=True)
    terminal.print_table(console, ("id",), [("a:tada:b",)])
    terminal.print_fields(console, [("note", ":bug: fixed")])
    assert file.getvalue().splitlines() == [
        "hub:x: write hub:OWNER/NAME", "3 pairs in /data[/red]/[bold].jsonl", "id", "a:tada:b", "note  :bug: fixed",
    ]  # fmt: skip


@pytest.mark.parametrize("tty", [False, True])
def test_a_message_is_one_line_except_on_a_terminal(tty: bool) -> None:
    file = io.StringIO()
    console = TerminalConsole(file=file, width=40, force_terminal=tty, color_system=None)
    path = "/data/a folder with spaces/and a long name/rows of preferences.parquet"
    console.print(f"1 preferences in {path}")
    assert (f"1 preferences in {path}\n" == file.getvalue()) != tty
    assert all(len(line) <= 40 for line in file.getvalue().splitlines()) == tty
