"""Two conflicting objectives: both prefer the truth, one in many words and the other in few."""

from __future__ import annotations

from random import Random
from typing import Literal

from three_domains.questions import Answers, Gold

_TRUTH = 2.0
"""Value of a true answer: that of eight words."""
_WORD = 0.25
"""Value of a word, added or subtracted."""
_MARGIN = 0.2
"""Least difference in value of a pair, by both objectives."""


Style = Literal["complete", "brief"]


def complete(answers: Answers, gold: Gold, response: str) -> float:
    return _truth(answers, gold, response) + _WORD * len(response.split())


def brief(answers: Answers, gold: Gold, response: str) -> float:
    """Rate the same truth; each word costs as much as it gains in ``complete``, as in the Chart client's taste."""
    return _truth(answers, gold, response) - _WORD * len(response.split())


def prefer(style: Style, answers: Answers, gold: Gold, rng: Random) -> tuple[str, str] | None:
    """Draw two answers to a question that differ by both objectives, the better by ``style`` first."""
    for _ in range(20):
        first, second = (rng.choice((answers.draft, answers.right, answers.wrong))(gold, rng) for _ in range(2))
        gaps = {name: judge(answers, gold, first) - judge(answers, gold, second) for name, judge in _JUDGES.items()}
        if min(map(abs, gaps.values())) >= _MARGIN:
            return (first, second) if gaps[style] > 0 else (second, first)
    return None


_JUDGES = {"complete": complete, "brief": brief}


def _truth(answers: Answers, gold: Gold, response: str) -> float:
    return _TRUTH * answers.correct(gold, response)
