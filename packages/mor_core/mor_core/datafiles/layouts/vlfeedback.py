"""VLFeedback as ``MMInstruction/VLFeedback`` is published: a picture, a prompt and completions rated by aspect."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import mean_rating, ordered_pairs, records, text_of


class VlFeedback(PairLayout):
    """``prompt`` and picture with ``completions`` and their ``annotations``."""

    name = "VLFeedback"
    about = (
        "`completions` of `{response, annotations}`; a score is the mean `Rating` of its aspects; a preference for "
        "every two with different scores"
    )
    needs = frozenset({"prompt", "completions"})
    skips = frozenset({"models"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return ordered_pairs(
            [
                (
                    text_of(one, "response", "completions"),
                    mean_rating(one.get("annotations"), "completions: annotations"),
                )
                for one in records(row["completions"], "completions")
            ]
        )
