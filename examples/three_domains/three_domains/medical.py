"""Domain Medical: the marked brain region and its side. Its client prefers both exactly, without unsupported claims."""

from __future__ import annotations

import re
from random import Random

from three_domains.questions import Gold, Question, choose, mentioned, word_patterns

REGIONS = {
    "frontal": "frontal lobe",
    "parietal": "parietal lobe",
    "occipital": "occipital lobe",
    "temporal": "temporal lobe",
    "cerebellum": "cerebellum",
    "basal ganglia": "basal ganglia",
}
SIDES = ("left", "right")
PLANES = ("axial", "coronal", "sagittal")
CLAIMS = ("probably a tumour", "which looks healthy", "with some damage", "a sign of disease")

_REGION = word_patterns(
    {
        "frontal": "frontal",
        "parietal": "parietal",
        "occipital": "occipital",
        "temporal": "temporal",
        "cerebellum": "cerebell(?:um|ar)",
        "basal ganglia": r"basal\s+ganglia",
    }
)
_SIDE = word_patterns({"left": "left(?:-sided)?", "right": "right(?:-sided)?"})
_PLANE = word_patterns({"axial": "axial|transverse|horizontal", "coronal": "coronal", "sagittal": "sagittal"})
_CLAIM = word_patterns(
    {
        "finding": "tumou?rs?|lesions?|damaged?|disease[ds]?|bleed(?:ing)?|stroke|cancer|patholog(?:y|ical)",
        "verdict": "healthy|normal|abnormal",
    }
)
_HEDGE = word_patterns({"hedge": "or|maybe|perhaps|probably|possibly|might|somewhere"})


def caption(plane: str, region: str | None, side: str | None) -> str:
    """Return plane and mark of a slice."""
    mark = "nothing" if region is None else f"the {side} {REGIONS[region]}"
    return f"{plane} plane, {mark} is marked"


def make_questions(plane: str, region: str | None, side: str | None, rng: Random) -> tuple[Question, ...]:
    """Return the questions of one slice; ``region`` and ``side`` are ``None`` when nothing is marked."""
    questions = [Question("Which plane does the slice show?", {"domain": "medical", "task": "plane", "plane": plane})]
    if region is None or side is None:
        return tuple(questions)
    base = {"domain": "medical", "region": region, "side": side}
    wording = ["Which region is marked, and on which side?", "Name the marked region and its side."]
    rng.shuffle(wording)
    questions = [Question(text, {**base, "task": "region"}) for text in wording] + questions
    return (*questions, Question("On which side is the mark?", {**base, "task": "side"}))


class MedicalAnswers:
    """Tuning targets, taste and checker of the Medical domain."""

    name = "medical"

    def draft(self, gold: Gold, rng: Random) -> str:
        claims = 0.4 if gold["task"] == "region" else 0.1
        styles = [(0.56 - claims, "right"), (0.18, "partial"), (0.18, "hedged"), (claims, "claim"), (0.08, "wrong")]
        style = choose(rng, styles)
        if style == "partial":
            return self._partial(gold, rng)
        if style == "hedged":
            return self._hedged(gold, rng)
        text = self.wrong(gold, rng) if style == "wrong" else self.right(gold, rng)
        return f"{text}, {rng.choice(CLAIMS)}" if style == "claim" else text

    def right(self, gold: Gold, rng: Random) -> str:
        return _phrase(gold["task"], gold.get("side", ""), gold.get("region", ""), gold.get("plane", ""))

    def wrong(self, gold: Gold, rng: Random) -> str:
        task = gold["task"]
        if task == "plane":
            return _phrase(task, "", "", rng.choice([plane for plane in PLANES if plane != gold["plane"]]))
        side, region = gold["side"], gold["region"]
        if task == "side" or rng.random() < 0.4:
            side = _other_side(side)
        else:
            region = rng.choice([other for other in REGIONS if other != region])
        return _phrase(task, side, region, "")

    def taste(self, gold: Gold, response: str) -> float:
        score = 0.0
        for pattern, wanted in _wanted(gold):
            named = mentioned(response, pattern)
            # An omission must cost nearly as much as a wrong guess; otherwise an empty answer would be the best.
            score += 2.0 if named == {wanted} else (-1.5 * len(named - {wanted}) if named else -1.0)
        if gold["task"] == "side":
            score -= 1.5 * len(mentioned(response, _REGION) - {gold["region"]})
        score -= 2.0 if mentioned(response, _CLAIM) else 0.0
        return score - (0.5 if mentioned(response, _HEDGE) else 0.0)

    def correct(self, gold: Gold, response: str) -> bool:
        if mentioned(response, _CLAIM):
            return False
        if gold["task"] == "side" and not mentioned(response, _REGION) <= {gold["region"]}:
            return False
        return all(mentioned(response, pattern) == {wanted} for pattern, wanted in _wanted(gold))

    def _partial(self, gold: Gold, rng: Random) -> str:
        if gold["task"] == "plane":
            return rng.choice(["a slice", "a slice of the brain"])
        if gold["task"] == "side":
            return rng.choice(["one side", "somewhere in the brain"])
        region = _region_phrase(gold["region"])
        return rng.choice([f"the {region}", f"the {region}", f"the {gold['side']} side", "a part of the brain"])

    def _hedged(self, gold: Gold, rng: Random) -> str:
        task = gold["task"]
        if task == "plane":
            other = rng.choice([plane for plane in PLANES if plane != gold["plane"]])
            first, second = rng.sample([gold["plane"], other], 2)
            return f"{first} or {second}"
        first, second = rng.sample(SIDES, 2)
        if task == "side" or rng.random() < 0.5:
            tail = "side" if task == "side" else _region_phrase(gold["region"])
            return f"the {first} or {second} {tail}"
        pair = rng.sample([gold["region"], rng.choice([other for other in REGIONS if other != gold["region"]])], 2)
        return f"the {gold['side']} {_region_phrase(pair[0])} or {_region_phrase(pair[1])}"


def _wanted(gold: Gold) -> list[tuple[dict[str, re.Pattern[str]], str]]:
    if gold["task"] == "plane":
        return [(_PLANE, gold["plane"])]
    sides = [(_SIDE, gold["side"])]
    return [*sides, (_REGION, gold["region"])] if gold["task"] == "region" else sides


def _phrase(task: str, side: str, region: str, plane: str) -> str:
    if task == "plane":
        return f"the {plane} plane"
    return f"the {side} side" if task == "side" else f"the {side} {_region_phrase(region)}"


def _region_phrase(region: str) -> str:
    return REGIONS[region]


def _other_side(side: str) -> str:
    return "right" if side == "left" else "left"
