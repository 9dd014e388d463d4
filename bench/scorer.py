"""Scoring rule of the measured loops: fast, and different for different responses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def varied(messages: Any, responses: Sequence[str], images: Any) -> list[float]:
    """Score a response by its fraction of words with an even number, and slightly by the first word."""
    return [score(response) for response in responses]


def score(response: str) -> float:
    numbers = [sum(map(ord, word)) for word in response.split()]
    return (
        sum(number % 2 == 0 for number in numbers) / max(1, len(numbers)) + numbers[0] % 101 / 1000 if numbers else 0.0
    )
