"""Nectar as ``berkeley-nest/Nectar`` is published: one prompt, answers with ranks."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import number_of, ordered_pairs, records, text_of
from mor_core.datafiles.layouts.transcript import turns_of


class Nectar(PairLayout):
    """``answers`` with a ``rank`` each."""

    name = "Nectar"
    about = "`answers` of `{answer, rank}` (1 is best); a preference for every two with different ranks"
    needs = frozenset({"prompt", "answers"})
    skips = frozenset({"turns", "num_responses", "source", "good_natured"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        turns = turns_of(row["prompt"])
        if isinstance(turns, list) and turns and turns[-1] == {"role": "assistant", "content": ""}:
            turns = turns[:-1]  # the turn that the answers fill
        return prompt_columns(row, turns)

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return ordered_pairs(
            [
                (text_of(one, "answer", "answers"), -number_of(one.get("rank"), "answers: rank"))
                for one in records(row["answers"], "answers")
            ]
        )
