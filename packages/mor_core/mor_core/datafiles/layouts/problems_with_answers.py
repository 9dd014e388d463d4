"""Problems with answers, as geometry3k and its kind are published for verl and EasyR1."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.errors import Invalid


class ProblemWithAnswer(PairLayout):
    """``problem`` with its ``answer``; prompts only."""

    name = "geometry3k"
    about = "prompts only; `problem` is the prompt"
    needs = frozenset({"problem"})
    skips = frozenset({"answer", "solution"})

    def fits(self, columns: set[str]) -> bool:
        return super().fits(columns) and not {"prompt", "chosen", "conversations", "messages"} & columns

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["problem"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        raise Invalid("problems with answers are no preferences; give a file with better and worse responses")
