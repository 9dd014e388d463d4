"""verl: prompts with their origin and what a rule needs to score them."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.errors import Invalid


class Verl(PairLayout):
    """``prompt`` with ``data_source``; prompts only."""

    name = "verl"
    about = "prompts only; `data_source` is the domain"
    needs = frozenset({"prompt", "data_source"})
    skips = frozenset({"ability", "reward_model", "extra_info", "agent_name"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        known = prompt_columns(row, row["prompt"])
        return {**known, "domain": row["data_source"] if known["domain"] is None else known["domain"]}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        raise Invalid("verl's data has no preferences; give a file with better and worse responses")
