"""ms-swift: the better response ends the messages, the worse one stands beside them."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.errors import Invalid


class MsSwift(PairLayout):
    """``messages`` with ``rejected_response`` or ``rejected_messages``."""

    name = "ms-swift"
    about = (
        "`messages`; the last one of the assistant is the better response, `rejected_response`, or the end of "
        "`rejected_messages`, the worse one; a list of these makes a preference for each"
    )
    needs = frozenset({"messages"})
    may: ClassVar[frozenset[str]] = PairLayout.may | {"rejected_response", "rejected_messages"}

    def fits(self, columns: set[str]) -> bool:
        return super().fits(columns) and not {"prompt", "chosen", "conversations"} & columns

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        turns = _turns(row, "messages")
        while turns and turns[-1].get("role") == "assistant":
            turns = turns[:-1]
        return prompt_columns(row, turns)

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        better = _turns(row, "messages")[-1:]
        if row.get("rejected_response") is not None:
            return [(better, worse) for worse in _several(row["rejected_response"], str)]
        if row.get("rejected_messages") is not None:
            several = _several(row["rejected_messages"], list)
            return [(better, _turns({"rejected_messages": one}, "rejected_messages")[-1:]) for one in several]
        raise Invalid("neither rejected_response nor rejected_messages is there; add the worse response")


def _several(cell: Any, kind: type) -> list[Any]:
    """Return the items of a list of ``kind``; another cell alone."""
    return cell if isinstance(cell, list) and cell and all(isinstance(one, kind) for one in cell) else [cell]


def _turns(row: dict[str, Any], column: str) -> list[dict[str, Any]]:
    cell = row[column]
    if not isinstance(cell, list) or not all(isinstance(turn, dict) for turn in cell):
        raise Invalid(f"{column}: got {type(cell).__name__}; give a list of messages")
    return cell
