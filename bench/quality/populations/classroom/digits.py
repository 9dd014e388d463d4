"""Domain Digits: rows of handwritten numbers. Its clients like the bare answer.

The digits are those of UCI's "Optical Recognition of Handwritten Digits" (CC BY 4.0), out of scikit-learn's wheel.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from three_domains.plots import split_series
from three_domains.questions import PICTURE_SIZE, AnnotatedPicture, Split, word_patterns

from .answers import Choice, ChoiceAnswers

_ROWS = ("top", "middle", "bottom")
_HEIGHT = PICTURE_SIZE // len(_ROWS)
_DIGIT = 48
"""Side of a digit, pixels."""
_PAPER, _INK, _RULE = (250, 246, 232), (35, 40, 95), (205, 215, 230)
_COUNTS = tuple(str(count) for count in range(2, 7))

ANSWERS = ChoiceAnswers(
    "digits",
    "bare",
    "on the paper",
    {
        "read": word_patterns({str(number): str(number) for number in range(100)}),
        "largest": word_patterns({row: row for row in _ROWS}),
        "count": word_patterns({count: count for count in _COUNTS}),
    },
)


class Digits:
    """Generator of sheets with two or three numbers of one or two digits, one above the other."""

    def __init__(self, root: Path, seed: int) -> None:
        """``root``: the unpacked wheel of scikit-learn."""
        with gzip.open(root / "sklearn/datasets/data/digits.csv.gz") as file:
            table = np.loadtxt(file, delimiter=",")
        self._ink, self._value = table[:, :-1].reshape(-1, 8, 8) / 16, table[:, -1].astype(int)
        self._parts = split_series([str(row) for row in range(len(table))], Random(f"{seed}/digits"))

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        rows = [int(row) for row in self._parts[split]]
        for _ in range(count):
            places = _ROWS if rng.random() < 0.5 else tuple(sorted(rng.sample(_ROWS, 2), key=_ROWS.index))
            written = {place: rng.sample(rows, rng.choice((1, 2))) for place in places}
            read = {place: "".join(str(self._value[row]) for row in used) for place, used in written.items()}
            numbers = {place: int(number) for place, number in read.items()}
            padded = any(len(str(numbers[place])) < len(number) for place, number in read.items())
            if len(set(numbers.values())) == len(numbers) and not padded:
                yield self._picture(written, numbers, rng)

    def _picture(self, written: dict[str, list[int]], numbers: dict[str, int], rng: Random) -> AnnotatedPicture:
        image = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), _PAPER)
        drawing, ink = ImageDraw.Draw(image), Image.new("RGB", (_DIGIT, _DIGIT), _INK)
        for index, place in enumerate(_ROWS):
            bottom = (index + 1) * _HEIGHT - 2
            drawing.line((0, bottom, PICTURE_SIZE, bottom), fill=_RULE, width=2)
            left = rng.randrange(6, 50)
            for row in written.get(place, ()):
                mask = Image.fromarray((255 * self._ink[row]).astype(np.uint8))
                image.paste(ink, (left, bottom - _DIGIT - 2), mask.resize((_DIGIT, _DIGIT), Image.Resampling.BICUBIC))
                left += _DIGIT
        place = rng.choice(list(written))
        number = str(numbers[place])
        near = {str(rng.randrange(10 ** (len(number) - 1) * (len(number) > 1), 10 ** len(number))) for _ in range(6)}
        total = sum(map(len, written.values()))
        largest = max(numbers, key=lambda place: numbers[place])
        choices = (
            Choice("read", f"Which number is in the {place} row?", number, _with(near, number), "the number is {}."),
            Choice("largest", "Which row has the largest number?", largest, _ROWS, "the largest is in the {} row."),
            Choice("count", "How many digits are written in all?", str(total), _COUNTS, "the digits are {}."),
        )
        caption = ", ".join(f"{place} row {numbers[place]}" for place in written)
        return AnnotatedPicture(
            image,
            frozenset(f"digit:{row}" for used in written.values() for row in used),
            caption,
            tuple(choice.question("digits") for choice in choices),
        )


def _with(others: set[str], answer: str) -> tuple[str, ...]:
    """Return the options of a number: the answer and others that differ in value."""
    found = {str(int(other)) for other in others} - {answer} or {str((int(answer) + 1) % 100)}
    return (answer, *sorted(found))
