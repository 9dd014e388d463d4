"""What the three domains share: pictures with questions whose exact answers are known, and the splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from PIL import Image

PICTURE_SIZE = 168
"""Width and height of every picture, in pixels: a multiple of twice the tower's 14-pixel patches."""

Split = Literal["server", "client", "anchor", "dev", "test"]
SPLITS: tuple[Split, ...] = ("server", "client", "anchor", "dev", "test")

Gold = dict[str, Any]
"""Exact answer of one question, as JSON: always ``domain`` and ``task``, the rest by task."""


@dataclass(frozen=True)
class Ask:
    """One question about a picture and its exact answer."""

    question: str
    gold: Gold


@dataclass(frozen=True)
class Picture:
    """One picture (RGB, ``PICTURE_SIZE`` square), what it was made from, a dense true caption, and its questions."""

    image: Image.Image
    sources: frozenset[str]
    caption: str
    asks: tuple[Ask, ...]


class PictureMaker(Protocol):
    """Draws pictures of one domain from the material of one split."""

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[Picture]:
        """Yields ``count`` pictures that use no material of another split."""
        ...


class Answers(Protocol):
    """The text side of one domain: mediocre drafts, one client's taste, and the gold checker."""

    name: str

    def draft(self, gold: Gold, rng: Random) -> str:
        """Returns an answer in the mixed, mediocre styles of the base model's tuning targets."""
        ...

    def right(self, gold: Gold, rng: Random) -> str:
        """Returns an answer that the gold checker accepts, in the style the client likes."""
        ...

    def wrong(self, gold: Gold, rng: Random) -> str:
        """Returns an answer in the style the client likes whose content is false."""
        ...

    def taste(self, gold: Gold, response: str) -> float:
        """Returns how much the client likes ``response``; only differences matter."""
        ...

    def correct(self, gold: Gold, response: str) -> bool:
        """Says whether ``response`` is true and answers all that was asked, whatever its format."""
        ...


_DIGITS = {
    word: value
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)?|\b(?:" + "|".join(_DIGITS) + r")\b", re.IGNORECASE)


def numbers(text: str) -> list[float]:
    """Returns every number in ``text`` in order, in digits (``72``, ``6.5``, ``6,5``) or as a word up to ten."""
    found = (match.group().lower() for match in _NUMBER.finditer(text))
    return [float(_DIGITS[word]) if word in _DIGITS else float(word.replace(",", ".")) for word in found]


def mentioned(text: str, patterns: dict[str, re.Pattern[str]]) -> set[str]:
    """Returns the keys of ``patterns`` that occur in ``text``."""
    return {key for key, pattern in patterns.items() if pattern.search(text)}


def word_patterns(synonyms: dict[str, str]) -> dict[str, re.Pattern[str]]:
    """Compiles one case-insensitive whole-word pattern per key; a value holds alternatives in regular-expression
    syntax.
    """
    return {key: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for key, words in synonyms.items()}


def listing(parts: Sequence[str]) -> str:
    """Joins ``parts`` as English does: ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def choose(rng: Random, options: Iterable[tuple[float, str]]) -> str:
    """Draws one option by its weight."""
    weights, names = zip(*options, strict=True)
    name: str = rng.choices(names, weights)[0]
    return name


def preference(
    answers: Answers, gold: Gold, rng: Random, contrasts: float, margin: float = 0.5
) -> tuple[str, str] | None:
    """Draws a chosen and a rejected answer that differ in taste by at least ``margin``.

    The share ``contrasts`` of the pairs sets a true answer against a false one in the same style, so that a reward
    model must look at the picture; the others are two independent drafts. Returns ``None`` when twenty draws gave no
    such pair.
    """
    contrast = rng.random() < contrasts
    for _ in range(20):
        if contrast:
            pair = (answers.right(gold, rng), answers.wrong(gold, rng))
        else:
            pair = (answers.draft(gold, rng), answers.draft(gold, rng))
        first, second = (answers.taste(gold, response) for response in pair)
        if abs(first - second) >= margin:
            return pair if first > second else (pair[1], pair[0])
    return None
