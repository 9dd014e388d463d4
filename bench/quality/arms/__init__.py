"""Arms of the comparison: one way to compute a reward per file, one interface: ``fit(anchors) -> score(groups)``."""

from __future__ import annotations

from quality.arms.arm import Arm, Score
from quality.arms.best_single import BestSingle
from quality.arms.competence import NearestCompetence
from quality.arms.domain_classifier import DomainClassifier
from quality.arms.linucb import LinUcb
from quality.arms.mixture import MixtureOfRewards, ablations, without_support
from quality.arms.oracle import Oracle
from quality.arms.other import OtherModel
from quality.arms.pessimistic import mean_minus_variance, worst_client
from quality.arms.stacking import Stacking
from quality.arms.thompson import Thompson
from quality.arms.uniform import UniformRaw, UniformStandardised

__all__ = [
    "Arm",
    "MixtureOfRewards",
    "Oracle",
    "OtherModel",
    "Score",
    "UniformRaw",
    "ablations",
    "baselines",
    "without_support",
]


def baselines() -> list[Arm]:
    """List the alternatives to MoR with the same scores and anchors."""
    return [
        BestSingle(),
        DomainClassifier(),
        Stacking(),
        Stacking("stacking on MoR's standardised scores", mor_units=True),
        UniformRaw(),
        UniformStandardised(),
        worst_client(),
        mean_minus_variance(),
        LinUcb(),
        Thompson(),
        NearestCompetence(),
    ]
