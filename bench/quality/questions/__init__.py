"""Questions of the experiment: one file per subject; each answer is a table of plain numbers."""

from __future__ import annotations

from collections.abc import Callable

from quality.evidence import ExperimentData, Table
from quality.questions.adversarial import adversarial
from quality.questions.anchors import anchor_counts, other_mixes
from quality.questions.conflict import objectives
from quality.questions.labels import labels
from quality.questions.onboarding import onboarding
from quality.questions.policies import policies
from quality.questions.ranking import clients, ranking, wire, without_parts
from quality.questions.scaling import scaling
from quality.questions.variants import variants

QUESTIONS: tuple[Callable[[ExperimentData], Table], ...] = (
    clients,
    ranking,
    policies,
    without_parts,
    variants,
    anchor_counts,
    labels,
    other_mixes,
    onboarding,
    adversarial,
    objectives,
    scaling,
    wire,
)

__all__ = [
    "QUESTIONS",
    "adversarial",
    "anchor_counts",
    "clients",
    "labels",
    "objectives",
    "onboarding",
    "other_mixes",
    "policies",
    "ranking",
    "scaling",
    "variants",
    "wire",
    "without_parts",
]
