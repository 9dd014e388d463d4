"""Questions for recorded calls: those of the live groups, a share of which the operator has anchors about.

The operator's questions are a sample of the run's prompts, as docs/client-lifecycle.md advises.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from mor_core.wire import Message
from mor_router.objectives.objective_store import Anchor, digest_of
from quality import scoring
from three_domains.domains import ANSWERS
from three_domains.questions import Gold, preference

from adversary.live_groups import GROUP_SIZE, POLICIES, drafted

_OPERATORS = 0.3
"""Share of the run's questions that the operator has anchors about."""


@dataclass(frozen=True)
class Question:
    """A question that the policy answers anew each time."""

    messages: tuple[Message, ...]
    images: Mapping[str, bytes]
    gold: Gold

    def sample(self, progress: float, random: Random) -> tuple[str, ...]:
        """Draw a group of responses from the policy after this share of the run; it moves from early to late."""
        late = random.random() < progress
        best_of = POLICIES["late" if late else "early"]
        return tuple(drafted(self.gold, best_of, random) for _ in range(GROUP_SIZE))

    def taste(self, response: str) -> float:
        """Return the true value of a response."""
        return ANSWERS[self.gold["domain"]].taste(self.gold, response)


def questions(state: Path) -> tuple[list[Question], list[Question], list[Anchor]]:
    """Return the run's questions, those of the operator among them, and the pairs that the operator uploads.

    ``state``: folder of ``live_groups.prepare``.
    """
    folder, random = state / "early", Random(0)
    golds = [json.loads(line) for line in (folder / "gold.jsonl").read_text(encoding="utf-8").splitlines()]
    live: list[Question] = []
    operators: list[Question] = []
    uploaded: list[Anchor] = []
    for gold, group in zip(golds, scoring.groups(folder), strict=True):
        question = Question(group.prompt.messages, group.prompt.images, gold)
        live.append(question)
        if random.random() >= _OPERATORS:
            continue
        operators.append(question)
        pair = preference(ANSWERS[gold["domain"]], gold, random, 0.0)
        if pair is not None:
            uploaded.append(_uploaded(question, *pair, gold["domain"]))
    return live, operators, uploaded


def _uploaded(question: Question, chosen: str, rejected: str, domain: str) -> Anchor:
    digest = digest_of(question.messages, chosen, rejected)
    return Anchor(
        id=digest[:12], digest=digest, messages=question.messages, chosen=chosen, rejected=rejected, domain=domain
    )
