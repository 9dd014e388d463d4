"""Division of preference rows into training, calibration and report splits, disjoint by picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from random import Random

from mor_core.datafiles import Preference
from mor_core.errors import Invalid


@dataclass(frozen=True)
class Splits:
    """Row numbers of each split, ascending. No picture occurs in two of them."""

    train: tuple[int, ...]
    calibration: tuple[int, ...]
    """For early stopping and the temperature."""
    report: tuple[int, ...]
    """For the figures on the card; used once, at the end."""


def materials(row: Preference) -> frozenset[Hashable]:
    """Return the hashes of a row's pictures, or its prompt if it has none."""
    return frozenset(row.prompt.images) or frozenset({row.prompt.messages})


def split_rows(rows: Sequence[frozenset[Hashable]], heldout_fraction: float, seed: int) -> Splits:
    """Split rows so that those which share a picture, directly or through other rows, stay together.

    ``rows``: the materials of each row. ``heldout_fraction`` of the rows, in (0, 0.5], is held out: half of it for
    calibration, half for the report. The same rows and ``seed`` give the same split.

    Raises:
        Invalid: there are too few distinct pictures for three splits.
    """
    groups = connected(rows)
    Random(seed).shuffle(groups)
    wanted = max(1, round(len(rows) * heldout_fraction / 2))
    heldout: list[list[int]] = [[], []]
    for part in heldout:
        while groups and len(part) < wanted:
            part.extend(groups.pop())
    train = [row for group in groups for row in group]
    if not train or not all(heldout):
        raise Invalid(
            f"{len(rows)} rows have too few distinct pictures for three splits; "
            f"give rows with more distinct pictures, or a smaller --heldout-fraction than {heldout_fraction:g}"
        )
    return Splits(tuple(sorted(train)), tuple(sorted(heldout[0])), tuple(sorted(heldout[1])))


def picture_numbers(rows: Sequence[frozenset[Hashable]]) -> list[int]:
    """Number the pictures from 0 and return that of each row; rows that share one, also through others, are equal."""
    number_of = {row: number for number, group in enumerate(connected(rows)) for row in group}
    return [number_of[row] for row in range(len(rows))]


def connected(rows: Sequence[frozenset[Hashable]]) -> list[list[int]]:
    """Return the connected components of rows over shared materials, in the order of their first rows."""
    parent = list(range(len(rows)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    first: dict[Hashable, int] = {}
    for number, row in enumerate(rows):
        for material in row:
            one, other = root(first.setdefault(material, number)), root(number)
            parent[max(one, other)] = min(one, other)
    groups: dict[int, list[int]] = {}
    for number in range(len(rows)):
        groups.setdefault(root(number), []).append(number)
    return list(groups.values())
