"""Domain Detail: things in a scene of photographs. Its client prefers complete lists in full sentences."""

from __future__ import annotations

from random import Random

from three_domains.questions import Gold, Question, choose, listing, mentioned, numbers, word_patterns

ARTICLED = {
    "bird": "a bird",
    "mammal": "a mammal",
    "flower": "a flower",
    "food": "some food",
    "vehicle": "a vehicle",
    "coin": "a coin",
}
CORNERS = ("top left", "top right", "bottom left", "bottom right")

_KINDS = word_patterns(
    {
        "bird": "birds?",
        "mammal": "mammals?",
        "flower": "flowers?|blossoms?",
        "food": "foods?|fruits?|vegetables?",
        "vehicle": "vehicles?|cars?",
        "coin": "coins?",
    }
)
_EMPTY = word_patterns({"empty": "nothing|empty"})
_SENTENCE = word_patterns({"sentence": "there (?:is|are)|shows?"})
_COUNT_WORDS = ("no", "one", "two", "three", "four", "five")


def caption(corners: dict[str, str]) -> str:
    """Describe the content of each corner of a scene, in reading order."""
    return ", ".join(f"{corner} {ARTICLED.get(corners.get(corner, ''), 'nothing')}" for corner in CORNERS)


def make_questions(corners: dict[str, str], rng: Random) -> tuple[Question, ...]:
    """Return the questions of one scene.

    ``corners`` maps a filled corner to the kind of thing in it; kinds are distinct.
    """
    kinds = [corners[corner] for corner in CORNERS if corner in corners]
    base = {"domain": "detail", "kinds": kinds}
    filled = rng.choice(sorted(corners))
    other = rng.choice([corner for corner in CORNERS if corner != filled])
    questions = [
        Question(
            rng.choice(["Name every kind of thing in the picture.", "What is in the picture? List all."]),
            {**base, "task": "list"},
        ),
        Question("List all things you can see.", {**base, "task": "list"}),
        Question("How many things are there?", {**base, "task": "count"}),
    ]
    for corner in (filled, other):
        gold = {**base, "task": "corner", "corner": corner, "kind": corners.get(corner, "nothing")}
        questions.append(Question(f"What is at the {corner}?", gold))
    return tuple(questions)


class DetailAnswers:
    """Tuning targets, taste and checker of the Detail domain."""

    name = "detail"

    def draft(self, gold: Gold, rng: Random) -> str:
        style = choose(rng, [(0.32, "right"), (0.36, "partial"), (0.18, "vague"), (0.14, "wrong")])
        if style == "vague":
            return self._vague(gold, rng)
        if style == "partial":
            return self._partial(gold, rng)
        content = _content(gold) if style == "right" else _false_content(gold, rng)
        return _phrase(gold, content, choose(rng, [(0.5, "sentence"), (0.5, "bare")]), rng)

    def right(self, gold: Gold, rng: Random) -> str:
        return _phrase(gold, _content(gold), "sentence", rng)

    def wrong(self, gold: Gold, rng: Random) -> str:
        return _phrase(gold, _false_content(gold, rng), "sentence", rng)

    def taste(self, gold: Gold, response: str) -> float:
        named, present = mentioned(response, _KINDS), set(gold["kinds"])
        polish = 0.5 if mentioned(response, _SENTENCE) else 0.0
        if gold["task"] == "list":
            share = len(named & present) / len(present)
            return 4.0 * share - 1.0 * len(named - present) + polish + (1.0 if named == present else 0.0)
        if gold["task"] == "count":
            given = numbers(response)
            truth = 2.5 if set(given) == {float(len(present))} else -1.0
            return truth - 1.0 * len(named - present) + polish - (0.0 if given else 0.5)
        wanted = {gold["kind"]} - {"nothing"}
        empty = bool(mentioned(response, _EMPTY))
        if not named and not empty:
            return polish - 1.5
        return (2.5 if named == wanted and empty == (not wanted) else -1.0) + polish

    def correct(self, gold: Gold, response: str) -> bool:
        named, present = mentioned(response, _KINDS), set(gold["kinds"])
        if gold["task"] == "list":
            return named == present
        if gold["task"] == "count":
            return set(numbers(response)) == {float(len(present))} and named <= present
        if gold["kind"] == "nothing":
            return not named and bool(mentioned(response, _EMPTY))
        return named == {gold["kind"]} and not mentioned(response, _EMPTY)

    def _vague(self, gold: Gold, rng: Random) -> str:
        if gold["task"] == "list":
            return rng.choice(["some things", "several things", "There are some things."])
        if gold["task"] == "count":
            return rng.choice(["some", "several things", "a few"])
        return rng.choice(["something", "a thing", f"There is something at the {gold['corner']}."])

    def _partial(self, gold: Gold, rng: Random) -> str:
        kinds = list(gold["kinds"])
        if gold["task"] == "list":
            keep = sorted(rng.sample(range(len(kinds)), rng.randint(1, len(kinds) - 1)))
            content = [kinds[index] for index in keep]
            tail = choose(rng, [(0.7, ""), (0.3, " and more")])
            lead = choose(rng, [(0.5, ""), (0.5, "There is ")])
            return f"{lead}{listing([ARTICLED[kind] for kind in content])}{tail}" + ("." if lead else "")
        if gold["task"] == "count":
            return f"more than {_COUNT_WORDS[len(kinds) - 1]}"
        options = (gold["kind"], rng.choice([kind for kind in ARTICLED if kind != gold["kind"]]))
        return " or ".join(ARTICLED.get(kind, "nothing") for kind in options)


def _content(gold: Gold) -> list[str]:
    return [gold["kind"]] if gold["task"] == "corner" else list(gold["kinds"])


def _false_content(gold: Gold, rng: Random) -> list[str]:
    content = _content(gold)
    absent = [kind for kind in ARTICLED if kind not in gold["kinds"] and kind != gold.get("kind")]
    if gold["task"] == "corner":
        pool = (
            absent
            + [kind for kind in gold["kinds"] if kind != gold["kind"]]
            + (["nothing"] if gold["kind"] != "nothing" else [])
        )
        return [rng.choice(pool)]
    index = rng.randrange(len(content))
    change = choose(rng, [(0.6, "swap"), (0.2, "add"), (0.2, "drop")])
    if change == "swap" and gold["task"] == "list":
        return [*content[:index], rng.choice(absent), *content[index + 1 :]]
    if len(content) < 4 and (change == "add" or len(content) < 3):
        return [*content[:index], rng.choice(absent), *content[index:]]
    return [*content[:index], *content[index + 1 :]]


def _phrase(gold: Gold, content: list[str], form: str, rng: Random) -> str:
    names = listing([ARTICLED.get(kind, "nothing") for kind in content])
    if gold["task"] == "list":
        return f"{rng.choice(['There is', 'The picture shows'])} {names}." if form == "sentence" else names
    if gold["task"] == "count":
        number = _COUNT_WORDS[len(content)]
        return (
            f"There are {number} things in the picture."
            if form == "sentence"
            else rng.choice([number, f"{number} things"])
        )
    return f"There is {names} at the {gold['corner']}." if form == "sentence" else names
