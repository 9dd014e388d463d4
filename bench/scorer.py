"""What the measured loops score with: a rule that costs nothing and tells responses apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def varied(messages: Any, responses: Sequence[str], images: Any) -> list[float]:
    """The share of a response's words with an even number, and a little for the first word."""
    return [score(response) for response in responses]


def score(response: str) -> float:
    numbers = [sum(map(ord, word)) for word in response.split()]
    return (
        sum(number % 2 == 0 for number in numbers) / max(1, len(numbers)) + numbers[0] % 101 / 1000 if numbers else 0.0
    )
