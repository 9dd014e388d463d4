"""What the experiment asks of the scores: one file a subject, and each answer a table of plain numbers."""

from quality.questions.anchors import anchor_counts, other_mixes
from quality.questions.conflict import objectives
from quality.questions.liars import liars
from quality.questions.policies import policies
from quality.questions.ranking import clients, ranking, without_parts

QUESTIONS = (clients, ranking, policies, without_parts, anchor_counts, other_mixes, liars, objectives)

__all__ = [
    "QUESTIONS",
    "anchor_counts",
    "clients",
    "liars",
    "objectives",
    "other_mixes",
    "policies",
    "ranking",
    "without_parts",
]
