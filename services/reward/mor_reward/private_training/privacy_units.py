"""Units of privacy: the rows whose joint presence differential privacy hides."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from mor_core.errors import Invalid
from mor_core.wire import PrivacyUnit

from mor_reward.preference_trainer import PreferencePair
from mor_reward.splits import connected


@dataclass(frozen=True)
class PrivacyUnits:
    """Division of some rows into units; each row belongs to exactly one."""

    rows: tuple[tuple[int, ...], ...]
    """Row numbers of each unit."""

    def __len__(self) -> int:
        return len(self.rows)

    def within(self, rows: Sequence[int]) -> PrivacyUnits:
        """Return the units of ``rows``, with their positions in ``rows`` as row numbers."""
        position = {row: index for index, row in enumerate(rows)}
        kept = (tuple(position[row] for row in unit if row in position) for unit in self.rows)
        return PrivacyUnits(tuple(unit for unit in kept if unit))

    @property
    def of_row(self) -> Int[np.ndarray, " rows"]:
        """Unit of each row; the rows are numbered from 0 without gaps."""
        found = np.empty(sum(map(len, self.rows)), dtype=np.int64)
        for number, unit in enumerate(self.rows):
            found[list(unit)] = number
        return found

    def means(self, values: Float[np.ndarray, rows * rest]) -> Float[np.ndarray, units * rest]:
        """Average the values of each unit's rows, so that a unit counts the same whatever its number of rows."""
        sums = np.zeros((len(self), *values.shape[1:]))
        np.add.at(sums, self.of_row, values)
        counts = np.array([len(unit) for unit in self.rows], dtype=np.float64)
        return sums / counts.reshape(-1, *(1 for _ in values.shape[1:]))


def unit_materials(pair: PreferencePair, unit: PrivacyUnit) -> frozenset[Hashable]:
    """Return what ties a pair to others: its pictures, and under the unit ``person`` also its person."""
    tied = frozenset[Hashable](picture.sha256 for picture in pair.chosen.pictures) or {pair.chosen.messages}
    return frozenset(tied | {("person", pair.person)} if unit == "person" and pair.person is not None else tied)


def privacy_units(pairs: Sequence[PreferencePair], unit: PrivacyUnit) -> PrivacyUnits:
    """Divide ``pairs`` into units.

    A pair with several pictures joins them into one unit, as does a picture of several persons: the unit is then larger
    than asked for, never smaller, and no pair belongs to two.

    Raises:
        Invalid: the unit is a person, and a pair names none.
    """
    if unit == "pair":
        return PrivacyUnits(tuple((number,) for number in range(len(pairs))))
    nameless = sum(pair.person is None for pair in pairs)
    if unit == "person" and nameless:
        raise Invalid(
            f"{nameless} of {len(pairs)} rows name no person, which --dp-unit person needs; give the column 'person', "
            "as in --map person=patient, or --dp-unit picture"
        )
    return PrivacyUnits(tuple(tuple(group) for group in connected([unit_materials(pair, unit) for pair in pairs])))


def check_public(public: Sequence[PreferencePair], pairs: Sequence[PreferencePair], unit: PrivacyUnit) -> None:
    """Check that no public pair belongs to a private unit: public features are not protected.

    Raises:
        Invalid: some do.
    """
    private = frozenset[Hashable]().union(*(unit_materials(pair, unit) for pair in pairs))
    shared = sum(not private.isdisjoint(unit_materials(pair, unit)) for pair in public)
    if shared:
        raise Invalid(
            f"{shared} of {len(public)} pairs in --dp-public share a picture, a question without pictures, or under "
            "--dp-unit person a person, with --data, and ε does not protect public pairs; give pairs that share none"
        )
