"""ShareGPT, as LLaVA and LLaMA-Factory write it: turns with ``from`` and ``value``."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.message_keys import check_keys
from mor_core.errors import Invalid

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "system": "system",
}


class ShareGpt(PairLayout):
    """``conversations`` with ``chosen`` and ``rejected`` as turns."""

    name = "ShareGPT, LLaVA, R1-Onevision"
    about = (
        "turns `{from, value}`; the prompt ends with the last turn of the user; `chosen` and `rejected` are turns or "
        "strings; `data_source` is the domain"
    )
    needs = frozenset({"conversations"})
    answers = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | {"data_source"}

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        cell = row["conversations"]
        if not isinstance(cell, list):
            raise Invalid(f"conversations: got {type(cell).__name__}; give a list of turns")
        turns = [_message(turn) for turn in cell]
        while turns and turns[-1]["role"] == "assistant":
            turns.pop()
        known = prompt_columns(row, turns)
        return {**known, "domain": row.get("data_source") if known["domain"] is None else known["domain"]}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return [(_answer(row["chosen"]), _answer(row["rejected"]))]


def _answer(cell: Any) -> Any:
    return _message(cell) if isinstance(cell, dict) else cell


def _message(turn: Any) -> dict[str, Any]:
    """Return a turn as a message."""
    if isinstance(turn, dict) and isinstance(turn.get("role"), str) and "content" in turn:
        return turn
    if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
        raise Invalid("conversations: a turn is not {from, value}; write each turn so")
    check_keys(turn, {"from", "value"}, "conversations")
    role = _ROLES.get(str(turn.get("from")))
    if role is None:
        raise Invalid(f"conversations: a turn is from {str(turn.get('from'))[:40]!r}; use {', '.join(_ROLES)}")
    return {"role": role, "content": turn["value"]}
