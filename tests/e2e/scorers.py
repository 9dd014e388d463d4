"""Two clients' scoring functions, for ``mor-reward serve --function``: one rewards length, one rewards vowels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def length(messages: Any, responses: Sequence[str], images: Any) -> list[float]:
    assert images, "the request must contain the pictures"
    return [len(text) / 10 for text in responses]


def vowels(messages: Any, responses: Sequence[str], images: Any) -> list[float]:
    return [sum(letter in "aeiou" for letter in text) / 5 for text in responses]
