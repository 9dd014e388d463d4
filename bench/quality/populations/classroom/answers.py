"""Answers to questions with one true choice out of a few: drafts, taste and checker of every domain of this folder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from three_domains.questions import Gold, Question, choose, mentioned

Form = Literal["sentence", "bare", "located"]
"""Form of an answer that a domain's clients like: a sentence, the bare choice, or a sentence that names the picture."""

_VAGUE = ("hard to say", "one of them", "It is not clear.")
_SENTENCE = re.compile(r"^[A-Z].* (?:is|are) .*\.$")


@dataclass(frozen=True)
class Choice:
    """Question with its true choice, and the words around a choice that make an answer a sentence."""

    task: str
    text: str
    answer: str
    options: tuple[str, ...]
    """The choices of a false answer and ``answer`` itself."""
    sentence: str
    """Sentence with ``{}`` in the place of the choice."""

    def question(self, domain: str) -> Question:
        gold = {"answer": self.answer, "options": list(self.options), "sentence": self.sentence}
        return Question(self.text, {"domain": domain, "task": self.task, **gold})


class ChoiceAnswers:
    """Text side of one domain."""

    def __init__(self, name: str, form: Form, place: str, words: Mapping[str, Mapping[str, re.Pattern[str]]]) -> None:
        """``place``: words for the picture. ``words``: task -> choice -> pattern of its mention in an answer."""
        self.name = name
        self._form: Form = form
        self._place = place
        self._words = words

    def draft(self, gold: Gold, rng: Random) -> str:
        style = choose(rng, [(0.24, "sentence"), (0.26, "bare"), (0.12, "located"), (0.2, "either"), (0.18, "vague")])
        choice = _false(gold, rng) if rng.random() < 0.25 else gold["answer"]
        if style == "vague":
            return rng.choice(_VAGUE)
        if style == "either":
            return " or ".join(rng.sample([gold["answer"], _false(gold, rng)], 2))
        return self._phrase(
            gold, choice, "sentence" if style == "sentence" else "bare" if style == "bare" else "located"
        )

    def right(self, gold: Gold, rng: Random) -> str:
        return self._phrase(gold, gold["answer"], self._form)

    def wrong(self, gold: Gold, rng: Random) -> str:
        return self._phrase(gold, _false(gold, rng), self._form)

    def taste(self, gold: Gold, response: str) -> float:
        named = mentioned(response, dict(self._words[gold["task"]]))
        if not named:
            truth = -1.5
        elif named == {gold["answer"]}:
            truth = 2.5
        else:
            truth = -0.5 if gold["answer"] in named else -1.0
        sentence, located = bool(_SENTENCE.match(response)), self._place in response
        match self._form:
            case "sentence":
                return truth + 0.6 * sentence - 0.6 * located
            case "located":
                return truth + 0.6 * located + 0.2 * sentence
            case "bare":
                return truth - 0.2 * max(0, len(response.split()) - 2)

    def correct(self, gold: Gold, response: str) -> bool:
        return mentioned(response, dict(self._words[gold["task"]])) == {gold["answer"]}

    def _phrase(self, gold: Gold, choice: str, form: Form) -> str:
        if form == "bare":
            return choice
        sentence: str = gold["sentence"].format(choice)
        sentence = sentence[0].upper() + sentence[1:]
        return sentence if form == "sentence" else f"{sentence.removesuffix('.')} {self._place}."


def _false(gold: Gold, rng: Random) -> str:
    return str(rng.choice([option for option in gold["options"] if option != gold["answer"]]))
