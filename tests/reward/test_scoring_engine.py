"""Calls of the scoring engine to its scorer."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch
from mor_core.images import sha256
from mor_core.wire import ImagePart, Message, TextPart
from mor_reward.backbones import Example, Picture
from mor_reward.scoring_engine import ScoringEngine
from torch import Tensor


class Lengths:
    """Scorer that scores a response by its length and records its calls."""

    def __init__(self, uses_pictures: bool) -> None:
        self.uses_pictures = uses_pictures
        self.scored: list[Example] = []

    def unscorable_reason(self, example: Example) -> str | None:
        return None

    def score(self, batch: Sequence[Example]) -> Tensor:
        self.scored += batch
        return torch.tensor([float(len(example.response)) for example in batch])


def _example(picture: bytes, response: str, question: str = "What is it?") -> Example:
    shown = Picture(sha256(picture), picture)
    message = Message(role="user", content=(ImagePart.of(shown.sha256), TextPart(text=question)))
    return Example((message,), (shown,), response)


@pytest.mark.parametrize(("uses_pictures", "passes"), [(True, 5), (False, 3)])
def test_examples_that_the_scorer_cannot_distinguish_are_scored_once(uses_pictures: bool, passes: int) -> None:
    scorer = Lengths(uses_pictures)
    items = [
        [_example(b"one", "a cat"), _example(b"one", "a horse"), _example(b"one", "a cat")],
        [_example(b"two", "a horse"), _example(b"two", "a cat")],
        [_example(b"two", "a cat", "And this?")],
    ]
    outcomes = ScoringEngine(scorer, temperature=2.0, batch_responses=2).run(items)
    assert [outcome.scores for outcome in outcomes] == [(2.5, 3.5, 2.5), (3.5, 2.5), (2.5,)]
    assert len(scorer.scored) == passes


class Hanging(Lengths):
    """Scorer whose tokenizer hangs on one question."""

    def unscorable_reason(self, example: Example) -> str | None:
        if "hang" in example.messages[0].text:
            time.sleep(1)
        return None


def test_an_item_whose_encoding_hangs_is_an_error_and_the_others_are_scored() -> None:
    items = [[_example(b"one", "a cat")], [_example(b"one", "a dog", "hang")], [_example(b"two", "a bird")]]
    engine = ScoringEngine(Hanging(True), temperature=1.0, batch_responses=2, encode_timeout_s=0.2)
    outcomes = engine.run(items)
    assert [outcome.status for outcome in outcomes] == ["ok", "error", "ok"]
    assert "did not end within 0.2 s (MOR_ENCODE_TIMEOUT_S)" in (outcomes[1].detail or "")
    assert engine.calls.stuck == 1
    assert engine.calls.problem is None
