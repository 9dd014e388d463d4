"""TRL with an explicit prompt, which is also the layout of ``mor.prompts/1`` and ``mor.prefs/1``."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, common
from mor_core.datafiles.layouts.rating import check_order


class Trl(PairLayout):
    """``prompt`` with ``chosen`` and ``rejected``, each a string or messages."""

    name = "TRL, explicit prompt; binarised UltraFeedback"
    about = (
        "strings or messages; `chosen` and `rejected` may repeat the prompt's messages; a "
        "`score_chosen` below `score_rejected` is an error"
    )
    needs = frozenset({"prompt"})
    answers = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | {"score_chosen", "score_rejected"}
    skips = frozenset({"messages", "margin", "prompt_id"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**common(row), "prompt": row["prompt"]}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        check_order(row)
        return [(row["chosen"], row["rejected"])]
