"""Losses of policy optimisation: one file for each algorithm, behind ``PolicyLoss``."""

from __future__ import annotations

from mor_core.algorithms import Cispo, Dapo, DrGrpo, Grpo, Gspo, Loss

from mor_trainer.algorithm.losses.cispo import CispoLoss
from mor_trainer.algorithm.losses.dapo import DapoLoss
from mor_trainer.algorithm.losses.dr_grpo import DrGrpoLoss
from mor_trainer.algorithm.losses.grpo import GrpoLoss
from mor_trainer.algorithm.losses.gspo import GspoLoss
from mor_trainer.algorithm.losses.policy_loss import PolicyLoss

__all__ = ["PolicyLoss", "policy_loss_of"]


def policy_loss_of(config: Loss) -> PolicyLoss:
    """Return the loss that a run was created with."""
    match config:
        case Grpo():
            return GrpoLoss(config.clip)
        case DrGrpo():
            return DrGrpoLoss(config.clip)
        case Dapo():
            return DapoLoss(config.clip)
        case Gspo():
            return GspoLoss(config.clip)
        case Cispo():
            return CispoLoss(config.clip)
