"""TRL with an explicit prompt, which is also the layout of ``mor.prompts/1`` and ``mor.prefs/1``."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import SCORES, check_order


class Trl(PairLayout):
    """``prompt`` with ``chosen`` and ``rejected``, each a string or messages."""

    name = "TRL, explicit prompt; binarised UltraFeedback, Tulu 3"
    about = (
        "strings or messages; `chosen` and `rejected` may repeat the prompt's messages; a "
        "score of `chosen` below that of `rejected` is an error"
    )
    needs = frozenset({"prompt"})
    answers = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | SCORES
    skips = frozenset(
        {
            "messages",
            "margin",
            "prompt_id",
            "source",
            "chosen_model",
            "rejected_model",
            "chosen-model",
            "rejected-model",
        }
    )

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        check_order(row)
        return [(row["chosen"], row["rejected"])]
