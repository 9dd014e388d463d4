"""Types of the router's API about proposals: unlabelled pairs whose labels would tell a fit most."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from mor_core.wire import Documented

MOST_CANDIDATES = 1024
"""Uploaded pairs of one objective: a fit on half as many labels is precise."""
MOST_COUNT = 64
"""Pairs of one proposal: after so many labels a new fit makes better ones."""
MOST_EXCERPT = 400
"""Characters of a question or response in a proposal."""


class ProposedLabel(Documented):
    """Unlabelled pair, and what its label is expected to tell."""

    audit: str | None
    """Identifier in the queue of audited groups, for the label; null: it is not in the queue."""
    source: Literal["live", "uploaded"]
    """``live``: a pair of a group of a run; ``uploaded``: a pair that was sent as a candidate."""
    domain: str | None
    """Domain label of the prompt."""
    question: str
    """Beginning of the last message of the user."""
    first: str
    """Beginning of the first response; the order of the two is random."""
    second: str
    information: float
    """Information about the clients' weights that the label is expected to give, nats."""
    disagreement: float
    """Disagreement of the clients' votes, by weight: 0 where all prefer the same response, 1 where they are split."""
    coverage: float
    """1 where no labelled pair, and none before it in the list, has an input like its own; 1/2 after one, and so on."""


class LabelProposal(Documented):
    """Pairs worth labelling next, the most valuable first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "objective": "helpful",
                    "gate_version": 3,
                    "candidates": 182,
                    "waiting": 0,
                    "pairs": [
                        {
                            "audit": "019b0c1d2e3f-5-7Qm2r9XkT1c",
                            "source": "live",
                            "domain": "chart",
                            "question": "How many bars are there?",
                            "first": "Four.",
                            "second": "It is a chart.",
                            "information": 0.21,
                            "disagreement": 0.93,
                            "coverage": 0.4,
                        }
                    ],
                }
            ]
        }
    )

    objective: str
    gate_version: int
    """Active gate version, under whose fit the values hold."""
    candidates: int
    """Live groups and uploaded pairs from which pairs can be proposed."""
    waiting: int
    """Proposed pairs in the queue that have no label yet; they are not proposed again."""
    pairs: tuple[ProposedLabel, ...]


class ProposalRequest(Documented):
    """Body of ``POST /v1/objectives/{name}/proposals``."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"count": 16}]})

    count: int = Field(16, ge=1, le=MOST_COUNT)
    """Largest number of pairs."""


class CandidateCounts(Documented):
    """Answer of ``PUT /v1/objectives/{name}/candidates``."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"objective": "helpful", "kept": 380, "labelled": 12, "held_back": 41, "unscored": 0}]
        }
    )

    objective: str
    kept: int
    """Pairs from which the router proposes."""
    labelled: int
    """Pairs left out because they are anchors, or wait for a label, already."""
    held_back: int
    """Pairs left out because an anchor with such a picture would be a honeypot, which no client may see before."""
    unscored: int
    """Pairs left out because no client scored them: none may be sent them, or all failed."""
