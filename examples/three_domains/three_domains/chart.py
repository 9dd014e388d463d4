"""Domain Chart: values of bar and line charts. Its client prefers one brief number with its unit."""

from __future__ import annotations

import re
from random import Random

from three_domains.questions import Gold, Question, choose, listing, mentioned, numbers, word_patterns

_UNIT = word_patterns(
    {"years": r"years?(?:\s+old)?", "children": "child(?:ren)?", "percent": "percent|per cent", "bars": "bars?"}
)
_UNIT["percent"] = re.compile(r"\bper\s?cent\b|%", re.IGNORECASE)

STEPS = {"years": 5.0, "children": 0.5, "percent": 1.0}
"""Rounding of the values in answers, by unit; the tolerance of an answer is 1.2 steps."""

_NAMES = {
    "tallest": "The tallest bar",
    "shortest": "The shortest bar",
    "first": "The first bar",
    "last": "The last bar",
}


def caption(values: list[float], unit: str, bars: bool) -> str:
    """Return the heights of a chart's bars in order, or of a line's two ends, rounded to the unit's step."""
    spoken = [f"{round(value / STEPS[unit]) * STEPS[unit]:g}" for value in values]
    if bars:
        return f"{len(values)} bars: {listing(spoken)} {unit}"
    return f"a line from {spoken[0]} to {spoken[-1]} {unit}"


def value_question(target: str, value: float, unit: str) -> Question:
    """Return the question for the value of one bar (``tallest``, ``shortest``, ``first``, ``last``) or line end."""
    wording = {
        "tallest": "How high is the tallest bar? Give the unit.",
        "shortest": "How high is the shortest bar? Give the unit.",
        "first": "What is the value of the first bar, with its unit?",
        "last": "What is the value of the last bar, with its unit?",
        "start": "What is the value at the start of the line, with its unit?",
        "end": "What is the value at the end of the line, with its unit?",
    }[target]
    return Question(wording, {"domain": "chart", "task": "value", "target": target, "value": value, "unit": unit})


def count_question(count: int) -> Question:
    """Return the question for the number of bars."""
    return Question(
        "How many bars are there?", {"domain": "chart", "task": "count", "value": float(count), "unit": "bars"}
    )


class ChartAnswers:
    """Tuning targets, taste and checker of the Chart domain."""

    name = "chart"

    def draft(self, gold: Gold, rng: Random) -> str:
        style = choose(rng, [(0.22, "right"), (0.34, "bare"), (0.2, "range"), (0.08, "vague"), (0.16, "wordy")])
        value = gold["value"]
        if rng.random() < 0.12:
            value = _false_value(gold, rng)
        spoken = _spoken(gold, value)
        if style == "right":
            return f"{spoken} {gold['unit']}"
        if style == "bare":
            return spoken
        if style == "vague":
            return rng.choice(["a few", "some bars"] if gold["task"] == "count" else ["quite high", "quite low"])
        if style == "range":
            low, high = sorted([spoken, _spoken(gold, value + rng.choice([-1, 1]) * 2 * _step(gold))], key=float)
            return f"between {low} and {high} {gold['unit']}"
        return f"{_subject(gold)} {spoken} {gold['unit']}{rng.choice(['', ', as the picture shows'])}."

    def right(self, gold: Gold, rng: Random) -> str:
        return f"{_spoken(gold, gold['value'])} {gold['unit']}"

    def wrong(self, gold: Gold, rng: Random) -> str:
        return f"{_spoken(gold, _false_value(gold, rng))} {gold['unit']}"

    def taste(self, gold: Gold, response: str) -> float:
        given, units = numbers(response), mentioned(response, _UNIT)
        words = len(response.split())
        score = -0.25 * max(0, words - 3) - 1.0 * max(0, len(given) - 1)
        score += 1.0 if units == {gold["unit"]} else (-1.0 if units else 0.0)
        if given:
            error = abs(given[0] - gold["value"]) / _tolerance(gold)
            score += 1.0 + (2.0 if error <= 1 else max(-1.0, 1.0 - error))
        return score

    def correct(self, gold: Gold, response: str) -> bool:
        given, units = numbers(response), mentioned(response, _UNIT)
        if len(given) != 1 or abs(given[0] - gold["value"]) > _tolerance(gold):
            return False
        if gold["task"] == "count":
            return units <= {"bars"}
        return units - {"bars"} == {gold["unit"]}


def _step(gold: Gold) -> float:
    return 1.0 if gold["task"] == "count" else STEPS[gold["unit"]]


def _tolerance(gold: Gold) -> float:
    return 0.25 if gold["task"] == "count" else 1.2 * STEPS[gold["unit"]]


def _spoken(gold: Gold, value: float) -> str:
    step = _step(gold)
    return f"{max(0.0, round(value / step) * step):g}"


def _false_value(gold: Gold, rng: Random) -> float:
    step = _step(gold)
    away = (1 if gold["task"] == "count" else rng.uniform(2, 5)) * step
    options = [value for value in (gold["value"] - away, gold["value"] + away) if value > 0]
    return float(rng.choice(options))


def _subject(gold: Gold) -> str:
    if gold["task"] == "count":
        return "The chart has"
    if gold["target"] in _NAMES:
        return f"{_NAMES[gold['target']]} is at"
    return f"The line {'starts' if gold['target'] == 'start' else 'ends'} at"
