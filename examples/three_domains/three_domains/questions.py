"""Shared parts of the three domains: pictures, questions with exact answers, splits, preference pairs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

from PIL import Image

PICTURE_SIZE = 168
"""Width and height of every picture, in pixels: a multiple of twice the image encoder's 14-pixel patches."""

Split = Literal["server", "client", "anchor", "dev", "test"]
SPLITS: tuple[Split, ...] = ("server", "client", "anchor", "dev", "test")

Gold = dict[str, Any]
"""Exact answer of one question, as JSON: always ``domain`` and ``task``, the rest by task."""


@dataclass(frozen=True)
class Question:
    """Question about a picture with its exact answer."""

    text: str
    gold: Gold


@dataclass(frozen=True)
class AnnotatedPicture:
    """Picture (RGB, ``PICTURE_SIZE`` square) with its sources, a dense true caption and its questions."""

    image: Image.Image
    sources: frozenset[str]
    caption: str
    questions: tuple[Question, ...]


class PictureMaker(Protocol):
    """Generator of pictures of one domain from the material of one split."""

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        """Yield ``count`` pictures that use no material of another split."""
        ...


class Answers(Protocol):
    """Text side of one domain: mediocre drafts, one client's taste, and the gold checker."""

    name: str

    def draft(self, gold: Gold, rng: Random) -> str:
        """Return an answer in the mixed, mediocre styles of the base model's tuning targets."""
        ...

    def right(self, gold: Gold, rng: Random) -> str:
        """Return an answer that the gold checker accepts, in the client's preferred style."""
        ...

    def wrong(self, gold: Gold, rng: Random) -> str:
        """Return a false answer in the client's preferred style."""
        ...

    def taste(self, gold: Gold, response: str) -> float:
        """Return the client's rating of ``response``; only differences matter."""
        ...

    def correct(self, gold: Gold, response: str) -> bool:
        """Return whether ``response`` is true and complete, in any format."""
        ...


_DIGITS = {
    word: value
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)?|\b(?:" + "|".join(_DIGITS) + r")\b", re.IGNORECASE)


def numbers(text: str) -> list[float]:
    """Return every number in ``text`` in order, in digits (``72``, ``6.5``, ``6,5``) or as a word up to ten."""
    found = (match.group().lower() for match in _NUMBER.finditer(text))
    return [float(_DIGITS[word]) if word in _DIGITS else float(word.replace(",", ".")) for word in found]


def mentioned(text: str, patterns: dict[str, re.Pattern[str]]) -> set[str]:
    """Return the keys of ``patterns`` that occur in ``text``."""
    return {key for key, pattern in patterns.items() if pattern.search(text)}


def word_patterns(synonyms: dict[str, str]) -> dict[str, re.Pattern[str]]:
    """Compile one case-insensitive whole-word pattern per key from alternatives in regular-expression syntax."""
    return {key: re.compile(rf"\b(?:{words})\b", re.IGNORECASE) for key, words in synonyms.items()}


def listing(parts: Sequence[str]) -> str:
    """Join ``parts`` as an English list: ``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def choose(rng: Random, options: Iterable[tuple[float, str]]) -> str:
    """Draw one option by its weight."""
    weights, names = zip(*options, strict=True)
    name: str = rng.choices(names, weights)[0]
    return name


def preference(
    answers: Answers, gold: Gold, rng: Random, contrasts: float, margin: float = 0.5
) -> tuple[str, str] | None:
    """Draw a chosen and a rejected answer that differ in taste by at least ``margin``.

    A fraction ``contrasts`` of the pairs has a true and a false answer in the same style, so that a reward model must
    use the picture; the others are two independent drafts. Returns ``None`` if twenty draws gave no such pair.
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
