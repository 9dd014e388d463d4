"""Loss of a micro-batch: the algorithm's surrogate, corrected for the engine, less the KL penalty."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import Float
from mor_core.algorithms import Algorithm
from torch import Tensor

from mor_trainer.algorithm import kl
from mor_trainer.algorithm.importance import RatioStatistics, correction
from mor_trainer.algorithm.losses import policy_loss_of
from mor_trainer.algorithm.losses.loss_tokens import LossTokens


@dataclass(frozen=True)
class LossSums:
    """Metrics of a micro-batch as sums over its tokens, so that micro-batches can be added up."""

    tokens: int = 0
    objective: float = 0.0
    kl: float = 0.0
    clipped_low: int = 0
    """Tokens at the lower limit of the loss: π/π_old (of the token, or of its response) fell under the range."""
    clipped_high: int = 0
    """Tokens at the upper limit of the loss: π/π_old (of the token, or of its response) rose over the range."""
    limited: int = 0
    """Tokens whose ratio π_old/π_engine (their own, or their response's) was truncated or masked."""
    ratio: RatioStatistics = field(default_factory=RatioStatistics)
    """Raw ratios π/π_engine of the tokens."""

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(
            self.tokens + other.tokens,
            self.objective + other.objective,
            self.kl + other.kl,
            self.clipped_low + other.clipped_low,
            self.clipped_high + other.clipped_high,
            self.limited + other.limited,
            self.ratio + other.ratio,
        )


def micro_batch_loss(tokens: LossTokens, config: Algorithm) -> tuple[Float[Tensor, ""], LossSums]:
    """Compute a micro-batch's part of the update's loss, and its metrics.

    Deviation from decoupled PPO (arXiv 2110.00641, eq. 3; AReaL, arXiv 2505.24298, eq. 5): J is any of ``losses``, and
    the correction c limits the ratio of policy to engine. As there, the clip range limits how far the updates of a step
    move the policy, and the correction makes up for how far the engine was from the policy as the step began.

    −Σ_t w_t [ c_t J_t(π/π_old) − β KL_t(c_t π/π_old) ], with c = f(π_old/π_engine). Micro-batches add up to the update.
    """
    surrogate = policy_loss_of(config.loss).surrogate(tokens)
    corrected = correction(tokens.old - tokens.engine, tokens.response, config.importance)
    objective = corrected.weight * surrogate.value
    weighted = tokens.weight * objective
    estimate = None
    if tokens.reference is not None:
        sampled = corrected.weight * tokens.log_ratio.exp()
        weighted = weighted - config.kl.beta * tokens.weight * kl.penalty(
            tokens.policy, tokens.reference, sampled, config.kl
        )
        estimate = kl.k3(tokens.policy.detach(), tokens.reference)
    sums = LossSums(
        tokens=tokens.policy.numel(),
        objective=(tokens.weight * objective).sum().item(),
        kl=0.0 if estimate is None else estimate.sum().item(),
        clipped_low=int(surrogate.low.sum()),
        clipped_high=int(surrogate.high.sum()),
        limited=int(corrected.limited.sum()),
        ratio=RatioStatistics.of((tokens.policy.detach() - tokens.engine).exp()),
    )
    return -weighted.sum(), sums
