"""Several responses to one prompt, with scores or ranks in a list beside them."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.layouts.rating import number_of, ordered_pairs
from mor_core.errors import Invalid

_HIGHER_IS_BETTER = {"scores": True, "ratings": True, "ranks": False}


class RankedResponses(PairLayout):
    """``responses`` with ``scores``, ``ratings`` or ``ranks``."""

    name = "ranked responses"
    about = (
        "list `responses` with as many `scores` or `ratings` (more is better) or `ranks` (1 is best); a preference for "
        "every two that differ in it"
    )
    needs = frozenset({"prompt", "responses"})
    may: ClassVar[frozenset[str]] = PairLayout.may | set(_HIGHER_IS_BETTER)

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        columns = [column for column in _HIGHER_IS_BETTER if row.get(column) is not None]
        if len(columns) != 1:
            found = " and ".join(columns) or "none"
            raise Invalid(f"responses: of the columns scores, ratings and ranks the row has {found}; give one")
        [column] = columns
        responses, values = row["responses"], row[column]
        if not (isinstance(responses, list) and isinstance(values, list) and len(responses) == len(values)):
            raise Invalid(f"responses and {column} must be lists of one length; give one value for each response")
        sign = 1 if _HIGHER_IS_BETTER[column] else -1
        return ordered_pairs(
            [(text, sign * number_of(value, column)) for text, value in zip(responses, values, strict=True)]
        )
