"""Objectives of the policy optimisation: one file for each algorithm, behind ``Objective``."""

from __future__ import annotations

from mor_core.algorithms import Cispo, Dapo, DrGrpo, Grpo, Gspo, Loss

from mor_trainer.algorithm.losses.cispo import CispoObjective
from mor_trainer.algorithm.losses.dapo import DapoObjective
from mor_trainer.algorithm.losses.dr_grpo import DrGrpoObjective
from mor_trainer.algorithm.losses.grpo import GrpoObjective
from mor_trainer.algorithm.losses.gspo import GspoObjective
from mor_trainer.algorithm.losses.objective import Objective

__all__ = ["Objective", "objective_of"]


def objective_of(config: Loss) -> Objective:
    """The objective that a run was created with."""
    match config:
        case Grpo():
            return GrpoObjective(config.clip)
        case DrGrpo():
            return DrGrpoObjective(config.clip)
        case Dapo():
            return DapoObjective(config.clip)
        case Gspo():
            return GspoObjective(config.clip)
        case Cispo():
            return CispoObjective(config.clip)
