"""HelpSteer's preferences as ``nvidia`` publishes them: two responses, and a number that says which is better."""

from __future__ import annotations

from typing import Any

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import compared, number_of


class HelpSteer2Preferences(PairLayout):
    """``response_1`` and ``response_2`` with a ``preference_strength``."""

    name = "HelpSteer 2, preferences"
    about = "`preference_strength` is below 0 where `response_1` is better, above 0 where `response_2` is; 0 is no pair"
    needs = frozenset({"prompt", "response_1", "response_2", "preference_strength"})
    skips = frozenset(
        {
            *("split", "preference_statement", "preference_elaboration"),
            *("three_most_similar_preferences", "all_preferences_unprocessed"),
        }
    )

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        strength = number_of(row["preference_strength"], "preference_strength")
        return compared(row["response_1"], row["response_2"], strength)


class HelpSteer3Preferences(PairLayout):
    """``response1`` and ``response2`` with an ``overall_preference``."""

    name = "HelpSteer 3"
    about = "`context` is the prompt; `overall_preference` is below 0 where `response1` is better; 0 is no pair"
    needs = frozenset({"context", "response1", "response2", "overall_preference"})
    skips = frozenset({"language", "individual_preference"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["context"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return compared(row["response1"], row["response2"], number_of(row["overall_preference"], "overall_preference"))
