"""verl: prompts with their origin and what a rule needs to score them."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, common
from mor_core.errors import Invalid


class Verl(PairLayout):
    """``prompt`` with ``data_source``; prompts only."""

    name = "verl"
    about = "prompts only; `data_source` is the domain"
    needs = frozenset({"prompt", "data_source"})
    skips = frozenset({"ability", "reward_model", "extra_info"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        known = common(row)
        domain = row["data_source"] if known["domain"] is None else known["domain"]
        return {**known, "prompt": row["prompt"], "domain": domain}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        raise Invalid("verl's data has no preferences; give a file with better and worse responses")
