"""Arms of the study: one way to train policies per file, one interface: ``train(federation) -> adapters``."""

from __future__ import annotations

from quality.federated.arms.averaged_policies import AveragedPolicies
from quality.federated.arms.binary_selector import BinarySelector
from quality.federated.arms.following import FollowingMixture
from quality.federated.arms.local_policies import LocalPolicies
from quality.federated.arms.rewarded import AveragedRewardModel, FedGrpo, MixtureReward
from quality.federated.federation import FederatedArm

__all__ = ["arms"]


def arms() -> list[FederatedArm]:
    """List the arms, MoR last."""
    return [
        LocalPolicies("sft"),
        LocalPolicies("dpo"),
        AveragedPolicies("sft"),
        AveragedPolicies("dpo"),
        AveragedPolicies("sft", prox=True),
        AveragedPolicies("dpo", prox=True),
        BinarySelector(),
        AveragedRewardModel(),
        FedGrpo(),
        FollowingMixture(),
        MixtureReward(),
    ]
