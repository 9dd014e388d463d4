"""UltraFeedback as ``openbmb/UltraFeedback`` is published: one instruction, several rated completions."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import mean_rating, number_of, ordered_pairs, records, text_of

_SCORES = ("overall_score", "fine-grained_score", "score", "rating")
"""Scores of a completion, the first that it has."""


class UltraFeedback(PairLayout):
    """``instruction`` with rated ``completions``."""

    name = "UltraFeedback"
    about = (
        "`completions` of `{response, overall_score}` (else `fine-grained_score`, `score`, `rating` or the mean "
        "`Rating` of `annotations`); a preference for every two with different scores"
    )
    needs = frozenset({"instruction", "completions"})
    skips = frozenset({"source", "models", "correct_answers", "incorrect_answers"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["instruction"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return ordered_pairs(
            [
                (text_of(one, "response", "completions"), _score(one))
                for one in records(row["completions"], "completions")
            ]
        )


def _score(completion: dict[str, Any]) -> float:
    for name in _SCORES:
        if completion.get(name) is not None:
            return number_of(completion[name], f"completions: {name}")
    return mean_rating(completion.get("annotations"), "completions: annotations")
