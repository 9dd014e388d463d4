"""HelpSteer and HelpSteer 2 as ``nvidia`` publishes them: rated responses, each in a row of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mor_core.datafiles.layouts.layout import Layout, NumberedRows, preference_rows, prompt_columns, valid_row
from mor_core.datafiles.layouts.rating import check_number, number_of, ordered_pairs
from mor_core.datafiles.layouts.unpaired import prompt_key
from mor_core.datafiles.sources.row_files import RawRow, RowPlace
from mor_core.errors import Invalid


class HelpSteer(Layout):
    """``response`` with its ``helpfulness``; the responses to one prompt make pairs."""

    name = "HelpSteer, HelpSteer 2"
    about = (
        "`response` with `helpfulness`; a preference for every two responses to one prompt that differ in it, at the "
        "place of the later one"
    )
    needs = frozenset({"prompt", "response", "helpfulness"})
    skips = frozenset({"correctness", "coherence", "complexity", "verbosity"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def preferences(self, rows: NumberedRows) -> Iterator[tuple[RowPlace, RawRow]]:
        known: dict[str, list[tuple[Any, float]]] = {}
        for place, row in rows:
            try:
                valid = valid_row(row, self, "preferences")
                prompt, rated = self.prompt(valid), (valid["response"], number_of(valid["helpfulness"], "helpfulness"))
                earlier = known.setdefault(prompt_key(prompt), [])
                check_number(len(earlier) + 1)
            except Invalid as error:
                yield place, error
                continue
            pairs = [pair for one in earlier for pair in ordered_pairs([one, rated])]
            earlier.append(rated)
            for preference in preference_rows(prompt, pairs):
                yield place, preference
