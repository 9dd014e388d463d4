"""TRL with an implicit prompt: what ``chosen`` and ``rejected`` begin with is the prompt."""

from __future__ import annotations

from itertools import takewhile
from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import SCORES, check_order
from mor_core.datafiles.layouts.transcript import turns_of
from mor_core.errors import Invalid


class ImplicitPrompt(PairLayout):
    """``chosen`` and ``rejected`` are conversations that differ in the last message."""

    name = "TRL, implicit prompt; Anthropic HH, Skywork"
    about = (
        "conversations as messages, or transcripts with `Human:` and `Assistant:`, or strings; their common beginning "
        "is the prompt"
    )
    needs = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | SCORES
    skips = frozenset({"margin", "source"})

    def fits(self, columns: set[str]) -> bool:
        return super().fits(columns) and "prompt" not in columns

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, split(row["chosen"], row["rejected"])[0])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        check_order(row)
        _, chosen, rejected = split(row["chosen"], row["rejected"])
        return [(chosen, rejected)]


def split(better: Any, worse: Any) -> tuple[Any, Any, Any]:
    """Return prompt, better and worse response of two conversations.

    Raises:
        Invalid: they have no common beginning, or differ before the last message.
    """
    chosen, rejected = turns_of(better), turns_of(worse)
    if isinstance(chosen, str) and isinstance(rejected, str):
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
        shared = max(chosen.rfind(end, 0, shared) + len(end) for end in (" ", "\n"))
        if shared <= 0 or not chosen[:shared].strip():
            raise Invalid("chosen and rejected have no common beginning; add the column 'prompt'")
        return chosen[:shared].strip(), chosen[shared:].strip(), rejected[shared:].strip()
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise Invalid("chosen and rejected differ in their form; give both as messages, or both as strings")
    if len(chosen) < 2:
        raise Invalid(f"a conversation has {len(chosen)} message; give a question and an answer to it")
    if chosen[:-1] != rejected[:-1]:
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False))))
        raise Invalid(
            f"the two conversations, of {len(chosen)} and {len(rejected)} messages, differ from message {shared + 1} "
            "on; only the last one may differ, as two answers to one prompt: cut both after the first message that "
            "differs, or leave the row out"
        )
    return chosen[:-1], chosen[-1:], rejected[-1:]
