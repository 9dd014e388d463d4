"""Fusion strategies from calibrated scores to one reward: one strategy per file, one typed choice."""

from typing import Annotated

from pydantic import Field

from mor_router.mathematics.fusion.deviations import FusionStrategy, GroupDeviations
from mor_router.mathematics.fusion.gdpo import Gdpo
from mor_router.mathematics.fusion.mean_minus_variance import MeanMinusVariance
from mor_router.mathematics.fusion.median import Median
from mor_router.mathematics.fusion.uniform import Uniform
from mor_router.mathematics.fusion.weighted import Weighted
from mor_router.mathematics.fusion.worst_client import WorstClient

FusionChoice = Annotated[
    Weighted | Uniform | Median | WorstClient | MeanMinusVariance | Gdpo, Field(discriminator="kind")
]

__all__ = [
    "FusionChoice",
    "FusionStrategy",
    "Gdpo",
    "GroupDeviations",
    "MeanMinusVariance",
    "Median",
    "Uniform",
    "Weighted",
    "WorstClient",
]
