"""A row that hangs or ends its process costs itself alone; the rows beside it are encoded."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mor_core import encoding_processes, logs
from mor_core.datafiles import Prompt
from mor_core.encoding_processes import EncodingProcesses
from mor_core.errors import Unavailable
from mor_core.prompt_limits import PromptLimits
from mor_core.wire import Message

from tests.tiny_models import build_tiny_vlm

TEMPLATE = """
{%- for message in messages -%}
{%- if "hang" in message["content"] | string -%}
{%- for a in range(90000) -%}{%- for b in range(90000) -%}{%- endfor -%}{%- endfor -%}
{%- endif -%}
{{ message["content"] }}
{%- endfor -%}
"""
"""Chat template that hangs on a word, in time but not in memory."""


def prompts(*texts: str) -> list[tuple[int, Prompt]]:
    return [(n, Prompt(str(n), (Message(role="user", content=text),), {}, None)) for n, text in enumerate(texts)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = build_tiny_vlm(tmp_path_factory.mktemp("hanging"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return str(folder)


def test_a_row_that_hangs_is_given_up_in_time_and_the_others_are_encoded(model: str) -> None:
    processes: EncodingProcesses[int] = EncodingProcesses(model, PromptLimits(), 1, row_s=1.0)
    began = time.monotonic()
    answers = [answer for answer in processes.encode(iter(prompts("one", "hang", "three"))) if answer is not None]
    assert sorted(answers) == [(0, None), (1, "not encoded within 1 s"), (2, None)]
    assert time.monotonic() - began < 60


def test_a_process_in_which_a_row_hangs_ends_by_itself_where_nobody_is_left_to_end_it(model: str) -> None:
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    given = (theirs, logs.for_children(), model, PromptLimits(), 0.5)
    process = context.Process(target=encoding_processes._serve, args=given)
    process.start()
    assert ours.recv() is None
    ours.send([prompt for _, prompt in prompts("hang")])
    process.join(timeout=20)
    assert process.exitcode == -signal.SIGALRM


def _encode_or_die(processor: Any, limits: PromptLimits, prompt: Prompt) -> str | None:
    if "die" in prompt.messages[0].text:
        os.kill(os.getpid(), 9)
    return None


def test_a_row_in_which_processes_end_is_named_and_costs_itself_alone(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes: EncodingProcesses[int] = EncodingProcesses(model, PromptLimits(), 1, row_s=30.0)
    monkeypatch.setattr(encoding_processes, "_serve", _serve_or_die)
    texts = [*(f"row {n}" for n in range(20)), "die", *(f"row {n}" for n in range(20))]
    answers = dict(answer for answer in processes.encode(iter(prompts(*texts))) if answer is not None)
    assert len(answers) == len(texts)
    assert answers.pop(20) == "the process that encoded it ended (SIGKILL, perhaps out of memory)"
    assert set(answers.values()) == {None}


def _serve_or_die(*arguments: Any) -> None:
    encoding_processes.problem_of = _encode_or_die
    _serve(*arguments)


_serve = encoding_processes._serve


def test_processes_that_cannot_load_the_model_are_an_error(tmp_path: Path) -> None:
    processes: EncodingProcesses[int] = EncodingProcesses(str(tmp_path / "none"), PromptLimits(), 1, row_s=1.0)
    with pytest.raises(Unavailable, match="cannot load the model's processor"):
        list(processes.encode(iter(prompts("one"))))
