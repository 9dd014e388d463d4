"""Patterns of texts, with words for the error of one that does not match."""

from __future__ import annotations

from pydantic import StringConstraints

_WORDS: dict[str, str] = {}
"""Pattern -> description of the texts that match it."""


def matching(pattern: str, words: str, max_length: int | None = None) -> StringConstraints:
    """Constrain a text to a pattern; an error says that it should be ``words``."""
    _WORDS[pattern] = words
    return StringConstraints(pattern=pattern, max_length=max_length)


def words_of(pattern: str) -> str | None:
    """Return the words for a pattern; ``None`` if it has none."""
    return _WORDS.get(pattern)


def plain_name(longest: int, signs: str, letters: str = "lower-case letters") -> str:
    """Return words for a name of ``letters``, digits and ``signs`` that begins and ends with a letter or digit."""
    return f"1 to {longest} {letters}, digits and {signs}, with a letter or digit at both ends"
