"""Questions for recorded calls: those of the live groups, divided by picture into live ones and anchors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

from mor_router.objectives.objective_store import Anchor, digest_of
from quality import scoring
from three_domains.domains import ANSWERS
from three_domains.questions import Gold, preference

from adversary.live_groups import GROUP_SIZE
from adversary.recorded_calls import Question

_ANCHOR_PICTURES = 0.3
"""Share of the pictures that anchors are about."""
_REFITS = 2
"""Online refits before the recording; each samples the policy anew on every question of the anchors."""


def questions(state: Path) -> tuple[list[Question], list[Question], list[Anchor]]:
    """Return live questions, anchor questions, and pairs as an operator uploads them about the latter.

    ``state``: folder of ``live_groups.prepare``.
    """
    folder, random = state / "early", Random(0)
    golds = [json.loads(line) for line in (folder / "gold.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = sorted({gold["picture"] for gold in golds})
    held = {*random.sample(pictures, round(_ANCHOR_PICTURES * len(pictures)))}
    live: list[Question] = []
    anchors: list[Question] = []
    uploaded: list[Anchor] = []
    for gold, group in zip(golds, scoring.groups(folder), strict=True):
        responses = tuple(example.response for example in group.examples)
        question = Question(group.prompt.messages, group.prompt.images, responses)
        if gold["picture"] in held:
            anchors += [replace(question, responses=_sampled_anew(gold, random)) for _ in range(_REFITS)]
        else:
            live.append(question)
        pair = preference(ANSWERS[gold["domain"]], gold, random, 0.0) if gold["picture"] in held else None
        if pair is not None:
            uploaded.append(_uploaded(question, *pair, gold["domain"]))
    return live, anchors, uploaded


def _sampled_anew(gold: Gold, random: Random) -> tuple[str, ...]:
    return tuple(ANSWERS[gold["domain"]].draft(gold, random) for _ in range(GROUP_SIZE))


def _uploaded(question: Question, chosen: str, rejected: str, domain: str) -> Anchor:
    digest = digest_of(question.messages, chosen, rejected)
    return Anchor(
        id=digest[:12], digest=digest, messages=question.messages, chosen=chosen, rejected=rejected, domain=domain
    )
