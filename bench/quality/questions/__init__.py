"""What the experiment asks of the scores: one file a subject, and each answer a table of plain numbers."""

from __future__ import annotations

from collections.abc import Callable

from quality.evidence import Evidence, Table
from quality.questions.adversarial import liars
from quality.questions.anchors import anchor_counts, other_mixes
from quality.questions.conflict import objectives
from quality.questions.onboarding import joining
from quality.questions.policies import policies
from quality.questions.ranking import clients, ranking, wire, without_parts
from quality.questions.scaling import growth

QUESTIONS: tuple[Callable[[Evidence], Table], ...] = (
    clients,
    ranking,
    policies,
    without_parts,
    anchor_counts,
    other_mixes,
    joining,
    liars,
    objectives,
    growth,
    wire,
)

__all__ = [
    "QUESTIONS",
    "anchor_counts",
    "clients",
    "growth",
    "joining",
    "liars",
    "objectives",
    "other_mixes",
    "policies",
    "ranking",
    "wire",
    "without_parts",
]
