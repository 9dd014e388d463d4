"""Losses of preference pairs and of sampled groups, and the advantage of FedGRPO."""

from __future__ import annotations

from jaxtyping import Bool, Float
from mor_trainer.algorithm.kl import k3
from torch import Tensor
from torch.nn import functional


def sft(chosen: Float[Tensor, "pairs tokens"], mask: Bool[Tensor, "pairs tokens"]) -> Float[Tensor, ""]:
    """Compute the mean negative log-probability of the tokens of the preferred answers."""
    return -(chosen * mask).sum() / mask.sum()


def dpo(
    chosen: Float[Tensor, " pairs"],
    rejected: Float[Tensor, " pairs"],
    reference_chosen: Float[Tensor, " pairs"],
    reference_rejected: Float[Tensor, " pairs"],
    beta: float,
) -> Float[Tensor, ""]:
    """Compute −log σ(β[(log π/π₀)(y⁺) − (log π/π₀)(y⁻)]) (DPO, arXiv 2305.18290, eq. 7), the mean over pairs."""
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -functional.logsigmoid(beta * margin).mean()


def grpo(
    policy: Float[Tensor, "responses tokens"],
    reference: Float[Tensor, "responses tokens"],
    mask: Bool[Tensor, "responses tokens"],
    advantages: Float[Tensor, " responses"],
    beta: float,
) -> Float[Tensor, ""]:
    """Compute GRPO's loss on policy (arXiv 2402.03300, eq. 3 and 4), as a mean over the step's tokens.

    There is one update for a sample, so the ratio π/π_old is 1 in value, and clipping has no effect.
    """
    ratio = (policy - policy.detach()).exp()
    objective = ratio * advantages[:, None] - beta * k3(policy, reference)
    return -(objective * mask).sum() / mask.sum()


def fed_grpo_advantage(rewards: Float[Tensor, "groups size"]) -> Float[Tensor, "groups size"]:
    """Standardise the experts' mean rewards within each group: A_i = (r_i − mean) / (std + 10⁻⁴).

    FedGRPO (arXiv 2602.12014) as in its authors' code, with the sample's standard deviation. Unlike MoR's there is no
    floor: a group to which all experts are nearly indifferent counts like any other.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
