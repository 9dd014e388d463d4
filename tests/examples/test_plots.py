"""Drawing of charts."""

from __future__ import annotations

from random import Random

from three_domains.plots import Plots, Quantity

YEARS = [("1990", 1.0), ("1995", 2.5), ("2000", 4.0), ("2005", 3.0), ("2010", 2.0), ("2015", 5.5), ("2020", 1.5)]
NAMES = "abcdefghijklmnopqrst"
QUANTITIES = [
    Quantity("Many years", "years", 9, {f"country {name}": YEARS for name in NAMES}),
    Quantity("More years", "children", 7, {f"country {name}": YEARS[::-1] for name in NAMES}),
    Quantity("One year", "percent", 6, {f"state {name}": [YEARS[index % 7]] for index, name in enumerate(NAMES)}),
]


def test_a_used_sheet_draws_the_same_as_a_new_one() -> None:
    used = Plots(QUANTITIES, seed=0)
    drawn = [next(used.pictures("server", 1, Random(number))) for number in range(12)]
    alone = [next(Plots(QUANTITIES, seed=0).pictures("server", 1, Random(number))) for number in range(12)]
    assert len({picture.caption for picture in drawn}) > 6
    for number, (picture, expected) in enumerate(zip(drawn, alone, strict=True)):
        assert picture.image.tobytes() == expected.image.tobytes(), number
        assert picture.questions == expected.questions
