"""From the clients' calibrated scores to one reward: one strategy per file, one typed choice."""

from typing import Annotated

from pydantic import Field

from mor_router.mathematics.fusion.gdpo import Gdpo
from mor_router.mathematics.fusion.median import Median
from mor_router.mathematics.fusion.panel import Fusion, Panel
from mor_router.mathematics.fusion.pessimistic import MeanMinusVariance
from mor_router.mathematics.fusion.uniform import Uniform
from mor_router.mathematics.fusion.weighted import Weighted
from mor_router.mathematics.fusion.worst import WorstClient

FusionChoice = Annotated[
    Weighted | Uniform | Median | WorstClient | MeanMinusVariance | Gdpo, Field(discriminator="kind")
]

__all__ = [
    "Fusion",
    "FusionChoice",
    "Gdpo",
    "MeanMinusVariance",
    "Median",
    "Panel",
    "Uniform",
    "Weighted",
    "WorstClient",
]
