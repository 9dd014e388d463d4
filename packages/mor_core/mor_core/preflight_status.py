"""State and results of the check of a run's prompts before the first step, as run control shows them."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from mor_core.wire import Documented


class BadPrompt(Documented):
    """A row of a prompts file that no run can use."""

    file: str
    line: int
    """Line, row or sample in the file, from 1."""
    id: str
    """Id of the row; empty where it is too broken to have one."""
    problem: str
    """Reason."""


class BadPrompts(Documented):
    """Rows that a run leaves out, of the prompts files and in their order; empty before they are checked."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "run": "three-domains-1a2b3c",
                    "bad": 1,
                    "listed": [
                        {
                            "file": "/data/server/prompts.jsonl",
                            "line": 17,
                            "id": "q17",
                            "problem": "the prompt has 1410 tokens, prompt and response together may have 1024",
                        }
                    ],
                }
            ]
        }
    )

    run: str
    bad: int
    """All bad rows."""
    listed: tuple[BadPrompt, ...]
    """The first of them, up to ``limit``; a run keeps 10,000 of each file, and 50,000 in all."""


class PreflightStatus(Documented):
    """State of the check of all prompts before the first step."""

    state: Literal["reading", "checking", "done"]
    """``reading``: files without an index are read; ``checking``: their rows are encoded."""
    rows: int
    """Rows that are read, or checked, of training and evaluation prompts."""
    bad: int
    """Rows among them that are left out, or that end the run where they are too many."""
    total: int | None = None
    """All rows; null until they are counted."""
    found: tuple[BadPrompt, ...]
    """The first 20 of these; ``/bad-prompts`` lists more."""
