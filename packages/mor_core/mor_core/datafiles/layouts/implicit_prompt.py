"""TRL with an implicit prompt: what ``chosen`` and ``rejected`` begin with is the prompt."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, common
from mor_core.datafiles.layouts.rating import check_order
from mor_core.datafiles.layouts.transcript import turns_of
from mor_core.errors import Invalid


class ImplicitPrompt(PairLayout):
    """``chosen`` and ``rejected`` are conversations that differ in the last message."""

    name = "TRL, implicit prompt; Anthropic HH"
    about = (
        "conversations as messages, or transcripts with `Human:` and `Assistant:`, or strings; their common beginning "
        "is the prompt"
    )
    needs = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | {"score_chosen", "score_rejected"}
    skips = frozenset({"margin"})

    def fits(self, columns: set[str]) -> bool:
        return super().fits(columns) and "prompt" not in columns

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**common(row), "prompt": _split(row)[0]}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        check_order(row)
        _, chosen, rejected = _split(row)
        return [(chosen, rejected)]


def _split(row: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Return prompt, better and worse response."""
    chosen, rejected = turns_of(row["chosen"]), turns_of(row["rejected"])
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
        shared = max(chosen.rfind(end, 0, shared) + len(end) for end in (" ", "\n"))
        if shared <= 0 or not chosen[:shared].strip():
            raise Invalid("chosen and rejected have no common beginning; add the column 'prompt'")
        return chosen[:shared].strip(), chosen[shared:].strip(), rejected[shared:].strip()
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise Invalid("chosen and rejected differ in their form; give both as messages, or both as strings")
    if len(chosen) < 2 or chosen[:-1] != rejected[:-1]:
        raise Invalid(
            "chosen and rejected must be conversations that differ in the last message alone; add the column 'prompt'"
        )
    return chosen[:-1], chosen[-1:], rejected[-1:]
