"""The clipped token-level objective, and how its tokens are averaged: one class for each algorithm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mor_core.algorithms import Algorithm, Clip, Dapo, DrGrpo, Grpo, Loss
from torch import Tensor

from mor_trainer import kl
from mor_trainer.importance import RatioStatistics, correction

TokenWeights = Callable[[Int[Tensor, " rows"], int], Float[Tensor, " rows"]]


def grpo_weights(lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
    """J = 1/N Σ_i 1/|o_i| Σ_t (·): each response counts the same (GRPO, arXiv 2402.03300, eq. 3).

    Returns the weight of one token of each row. ``lengths``: response tokens of all rows of the update.
    """
    del max_tokens
    return 1.0 / (lengths.clamp_min(1) * len(lengths)).double()


def dr_grpo_weights(lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
    """J = 1/N Σ_i 1/L_max Σ_t (·): no length bias, the divisor is constant (Dr.GRPO, arXiv 2503.20783)."""
    return torch.full((len(lengths),), 1.0 / (len(lengths) * max_tokens), dtype=torch.float64)


def dapo_weights(lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
    """J = 1/Σ|o_i| Σ_i Σ_t (·): each token of the update counts the same (DAPO, arXiv 2503.14476, eq. 8)."""
    del max_tokens
    return torch.full((len(lengths),), 1.0 / max(1, int(lengths.sum())), dtype=torch.float64)


def token_weights(config: Loss) -> TokenWeights:
    """The averaging rule of an algorithm."""
    match config:
        case Grpo():
            return grpo_weights
        case DrGrpo():
            return dr_grpo_weights
        case Dapo():
            return dapo_weights


def clipped(ratio: Float[Tensor, " n"], advantage: Float[Tensor, " n"], clip: Clip) -> Float[Tensor, " n"]:
    """min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) (PPO, arXiv 1707.06347, eq. 7; separate ε: DAPO, eq. 10)."""
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip.low, 1 + clip.high) * advantage)


@dataclass(frozen=True)
class Tokens:
    """Response tokens of a micro-batch, flat, in row order."""

    policy: Float[Tensor, " n"]
    """Log-probability under the policy, with gradient, nats."""
    engine: Float[Tensor, " n"]
    """Log-probability as the engine sampled it."""
    reference: Float[Tensor, " n"] | None
    """Log-probability under the reference policy; ``None`` leaves the penalty out."""
    advantage: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """Share of the token in the update, by ``token_weights``."""


@dataclass(frozen=True)
class LossSums:
    """Metrics of a micro-batch as sums over its tokens, so that micro-batches can be added up."""

    tokens: int
    objective: float
    kl: float
    clipped_low: int
    """Tokens whose gradient is cut because the ratio fell under 1 - ε_low with a negative advantage."""
    clipped_high: int
    """Tokens whose gradient is cut because the ratio rose over 1 + ε_high with a positive advantage."""
    ratio: RatioStatistics

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.tokens + other.tokens,
            self.objective + other.objective,
            self.kl + other.kl,
            self.clipped_low + other.clipped_low,
            self.clipped_high + other.clipped_high,
            self.ratio + other.ratio,
        )


def policy_loss(tokens: Tokens, config: Algorithm) -> tuple[Float[Tensor, ""], LossSums]:
    """−Σ_t w_t c_t [ min(ρ A, clip(ρ) A) − β KL_t ], with ρ = π/π_engine and c of ``importance.correction``.

    The ratio is taken to the distribution that really sampled, so one expression covers staleness, several updates
    over the same groups and the numerical difference between engine and trainer. The sum over the micro-batches of an
    update is the loss of the update.
    """
    clip = config.loss.clip
    ratio = (tokens.policy - tokens.engine).exp()
    factor = correction(ratio, config.importance)
    objective = clipped(ratio, tokens.advantage, clip) * factor
    weighted = tokens.weight * objective
    estimate = None
    if tokens.reference is not None:
        weighted = weighted - config.kl.beta * tokens.weight * kl.penalty(
            tokens.policy, tokens.reference, ratio * factor, config.kl
        )
        estimate = kl.k3(tokens.policy.detach(), tokens.reference)
    raw, positive = ratio.detach(), tokens.advantage > 0
    sums = LossSums(
        tokens=raw.numel(),
        objective=(tokens.weight * objective).sum().item(),
        kl=0.0 if estimate is None else estimate.sum().item(),
        clipped_low=int(((raw < 1 - clip.low) & (tokens.advantage < 0)).sum()),
        clipped_high=int(((raw > 1 + clip.high) & positive).sum()),
        ratio=RatioStatistics.of(raw),
    )
    return -weighted.sum(), sums
