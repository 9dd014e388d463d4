"""Parser of an upstream's answers: typed, bounded in values, with messages that quote nothing of them."""

from __future__ import annotations

from typing import TypeVar

from mor_core import bounded_json
from mor_core.errors import TooLarge
from mor_core.failures import describe
from pydantic import TypeAdapter, ValidationError

from mor_reward.group_scorer import BrokenAnswer

T = TypeVar("T")
_MOST_VALUES = 50_000
"""Values of an answer: those of 64 responses with a hundred labels, several times."""


def parse(kind: type[T], content: bytes) -> T:
    """Parse an answer; fields that the protocol does not need are ignored.

    Raises:
        BrokenAnswer: it is not JSON, does not fit ``kind``, or is too large.
    """
    try:
        bounded_json.check_values(content, _MOST_VALUES)
        parsed: T = TypeAdapter(kind).validate_json(content, extra="ignore")
    except TooLarge:
        raise BrokenAnswer(f"the upstream's answer has over {_MOST_VALUES} values") from None
    except ValidationError as error:
        raise BrokenAnswer(f"the upstream's answer does not fit its protocol: {describe(error)}") from None
    return parsed
