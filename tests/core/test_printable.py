"""No text from outside reaches a terminal with a control character, through any output of ours."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from io import StringIO
from typing import Any

import mor_client.output
import mor_reward.calibration_table
import pytest
import structlog
import three_domains.demo
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mor_client.errors import ServiceError
from mor_core.printable import visible, visible_json, visible_lines
from mor_core.terminal import TerminalConsole
from mor_core.wire import Calibration
from rich.progress import Progress, TextColumn
from rich.table import Table

from tests.secrecy.marks import logged

TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.text(
    st.sampled_from("\x1b[]\x07\x08\r\n\t\x00\x7f\x9b\x85\u202e\u2028\u2066\ufeffm0;31H2Ja"), max_size=40
)
"""Any text, and such as attacks a terminal: sequences of ESC and CSI, C1 controls, and overrides of direction."""
STYLES = re.compile(r"\x1b\[[0-9;]*[mAKGJ]|\x1b\[\?25[lh]")
"""rich's and structlog's own sequences: colours, and the cursor of a progress bar."""


def harmless(text: str, *, keep: str = "\n") -> bool:
    return all(one.isprintable() or one in keep for one in text)


@given(TEXTS)
def test_the_visible_text_is_printable_and_unique(text: str) -> None:
    assert visible(text).isprintable()
    assert harmless(visible_lines(text), keep="\n\t")
    if text.isprintable():
        assert visible(text) == text
    assert not any(unicodedata.category(one) in ("Cc", "Cf", "Zl", "Zp", "Cs") for one in visible(text))


@given(st.recursive(st.none() | TEXTS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=5))
def test_visible_json_is_the_same_document(value: Any) -> None:
    for ascii_only in (True, False):
        shown = visible_json(json.dumps(value, ensure_ascii=ascii_only))
        assert shown.isprintable()
        assert json.loads(shown) == value


def shown(console_of: Any, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Return what a console of a command prints of ``text``, in a message, a table and a progress bar."""
    buffer = StringIO()
    console = TerminalConsole(file=buffer, force_terminal=True, width=200)
    monkeypatch.setattr(console_of, "out" if hasattr(console_of, "out") else "console", console)
    if hasattr(console_of, "err"):
        monkeypatch.setattr(console_of, "err", console)
    if console_of is mor_client.output:
        mor_client.output.print_table((text,), [(text, None)], empty=text)
        mor_client.output.print_table((text,), [], empty="none")
        mor_client.output.print_fields([("name", text)])
        mor_client.output.print_error(ServiceError(text, text, text), as_json=False)
    elif console_of is mor_reward.calibration_table:
        figures = Calibration(pairs=1, pair_accuracy=1.0, pair_accuracy_interval=(0, 1), ece=0, temperature=1)
        mor_reward.calibration_table.show_calibration(text, figures, text)
    console.print(text, markup=False)
    console.print(Table(text, title=text), markup=False)
    with Progress(TextColumn("{task.description}", markup=False), console=console) as progress:
        progress.add_task(text)
    return STYLES.sub("", buffer.getvalue()).replace("\r", "")


@pytest.mark.parametrize("console_of", [mor_client.output, mor_reward.calibration_table, three_domains.demo])
@settings(max_examples=30, deadline=None)
@given(text=TEXTS)
@example(text="\x1b]0;title\x07\x1b[2J\x9b31m\u202e")
def test_no_command_prints_a_control_character(console_of: Any, text: str) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert harmless(shown(console_of, monkeypatch, text.replace("[", "(")))
        assert harmless(shown(console_of, monkeypatch, "\x1b" + text.replace("[", "(")))


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS)
@example("\x1b[2J", "\x9b31m\u202e")
def test_no_log_line_has_a_control_character(text: str, other: str) -> None:
    for style in ("console", "json"):
        with logged(style) as buffer:  # type: ignore[arg-type]
            structlog.get_logger("mor_core.test").warning(text, value=other, nested={text: [other]}, **{"key": other})
            logging.getLogger("library").warning("%s failed: %s", text, other)
            try:
                raise OSError(5, text, other)
            except OSError:
                logging.getLogger("library").exception(text)
        assert harmless(STYLES.sub("", buffer.getvalue()), keep="\n\t" if style == "console" else "\n"), style
        if style == "json":
            assert len(buffer.getvalue().splitlines()) == 3


def test_json_of_a_command_has_no_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("\x1b[2J", "\x9b", "\x7f\u202e\u2028", "\U000e0001"):
        mor_client.output.print_json({text: text})
        mor_client.output.print_error(ServiceError("router", text, text), as_json=True)
        out, err = capsys.readouterr()
        assert json.loads(out) == {text: text}
        assert json.loads(err)["error"]["detail"] == text
        assert harmless(out + err)
