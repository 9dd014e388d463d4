"""Scores and ranks of responses in published data, and the pairs that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from mor_core.errors import Invalid

_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
"""Columns with the scores of a pair: of the better response, of the worse one."""
_MOST_RESPONSES = 256
"""Responses to one prompt, which make 32,640 pairs: more than anybody rates, and few enough for memory."""
SCORES = frozenset(column for pair in _SCORES for column in pair)


def number_of(cell: Any, column: str) -> float:
    """Return a finite score, which may be written as a string.

    Raises:
        Invalid: the cell is none.
    """
    try:
        value = math.nan if isinstance(cell, bool) else float(cell)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise Invalid(f"{column}: got {str(cell)[:40]!r}; give a finite number")
    return value


def ordered_pairs(rated: Sequence[tuple[Any, float]]) -> list[tuple[Any, Any]]:
    """Return (better, worse) for all pairs of responses with different scores and different texts.

    Raises:
        Invalid: there are too many.
    """
    check_number(len(rated))
    ordered = sorted(rated, key=lambda one: -one[1])  # stable, so that ties keep their order
    return [
        (better, worse) for (better, high), (worse, low) in combinations(ordered, 2) if high > low and better != worse
    ]


def check_number(responses: int) -> None:
    """Check the number of responses to one prompt, each of which is compared with all others.

    Raises:
        Invalid: there are too many.
    """
    if responses > _MOST_RESPONSES:
        raise Invalid(f"over {_MOST_RESPONSES} responses to one prompt; leave some of them out")


def check_order(row: dict[str, Any]) -> None:
    """Check that the scores of a pair do not contradict its label.

    Raises:
        Invalid: they do, or are no numbers.
    """
    for better, worse in _SCORES:
        if row.get(better) is None or row.get(worse) is None:
            continue
        if number_of(row[better], better) < number_of(row[worse], worse):
            raise Invalid(f"{better} is below {worse}; exchange the responses, or ignore both columns")


def compared(first: Any, second: Any, strength: float) -> list[tuple[Any, Any]]:
    """Return (better, worse) of two responses; a negative ``strength`` is for the first, 0 for neither."""
    if strength == 0:
        return []
    return [(first, second) if strength < 0 else (second, first)]


def records(cell: Any, column: str) -> list[dict[str, Any]]:
    """Return a list of objects, which some writers store as an object of lists.

    Raises:
        Invalid: the cell is neither.
    """
    if isinstance(cell, dict) and cell and all(isinstance(value, list) for value in cell.values()):
        if len({len(value) for value in cell.values()}) != 1:
            raise Invalid(f"{column}: its lists differ in length; give one value for each response")
        return [dict(zip(cell, values, strict=True)) for values in zip(*cell.values(), strict=True)]
    if not isinstance(cell, list) or not all(isinstance(one, dict) for one in cell):
        raise Invalid(f"{column}: got {type(cell).__name__}; give a list of objects, one for each response")
    return cell


def mean_rating(annotations: Any, column: str) -> float:
    """Return the mean of the ``Rating`` of all aspects that have one.

    Raises:
        Invalid: no aspect has one.
    """
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [aspect.get("Rating") for aspect in aspects if isinstance(aspect, dict)]
    given = [number_of(rating, column) for rating in ratings if rating not in (None, "", "N/A")]
    if not given:
        raise Invalid(f"{column}: no aspect has a Rating; rate each response, or drop the row")
    return sum(given) / len(given)


def text_of(record: dict[str, Any], key: str, column: str) -> Any:
    """Return the response of a record.

    Raises:
        Invalid: it has none.
    """
    if record.get(key) is None:
        raise Invalid(f"{column}: an entry has no {key!r}; give the text of each response")
    return record[key]
