"""What the engine asks of a scorer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from mor_reward.backbones import Example, Picture
from mor_reward.engine import Engine
from torch import Tensor


class Lengths:
    """Scores a response by its length, and remembers what it was asked."""

    def __init__(self, sees_pictures: bool) -> None:
        self.sees_pictures = sees_pictures
        self.asked: list[Example] = []

    def refuse(self, example: Example) -> str | None:
        return None

    def score(self, batch: Sequence[Example]) -> Tensor:
        self.asked += batch
        return torch.tensor([float(len(example.response)) for example in batch])


def _example(picture: bytes, response: str, question: str = "What is it?") -> Example:
    shown = Picture(sha256(picture), picture)
    message = Message(role="user", content=(ImagePart.of(shown.sha256), TextPart(text=question)))
    return Example((message,), (shown,), response)


@pytest.mark.parametrize(("sees_pictures", "passes"), [(True, 5), (False, 3)])
def test_what_the_scorer_cannot_tell_apart_is_scored_once(sees_pictures: bool, passes: int) -> None:
    scorer = Lengths(sees_pictures)
    items = [
        [_example(b"one", "a cat"), _example(b"one", "a horse"), _example(b"one", "a cat")],
        [_example(b"two", "a horse"), _example(b"two", "a cat")],
        [_example(b"two", "a cat", "And this?")],
    ]
    verdicts = Engine(scorer, temperature=2.0, batch_responses=2).run(items)
    assert [verdict.scores for verdict in verdicts] == [(2.5, 3.5, 2.5), (3.5, 2.5), (2.5,)]
    assert len(scorer.asked) == passes
