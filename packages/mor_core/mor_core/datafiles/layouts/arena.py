"""Battles of arenas as WildVision and LMSYS publish them: two models' conversations, and the winner."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.implicit_prompt import split
from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import compared
from mor_core.errors import Invalid

_STRENGTHS = {"model_a": -1, "model_b": 1}


class Arena(PairLayout):
    """``conversation_a`` and ``conversation_b`` with the ``winner``."""

    name = "WildVision, LMSYS arena"
    about = (
        "the `winner` is `model_a` or `model_b`; another one, such as a tie, is no pair; conversations that differ "
        "before their last message are errors"
    )
    needs = frozenset({"conversation_a", "conversation_b", "winner"})
    skips = frozenset(
        {
            *("question_id", "model_a", "model_b", "judge", "turn", "anony", "language", "tstamp"),
            *("openai_moderation", "toxic_chat_tag"),
        }
    )

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, split(row["conversation_a"], row["conversation_b"])[0])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        if not isinstance(row["winner"], str):
            raise Invalid(f"winner: got {type(row['winner']).__name__}; give model_a, model_b or tie")
        _, first, second = split(row["conversation_a"], row["conversation_b"])
        return compared(first, second, _STRENGTHS.get(row["winner"], 0))
