"""Loss of Dr. GRPO, "GRPO done right"."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.loss_tokens import LossTokens
from mor_trainer.algorithm.losses.policy_loss import Surrogate, clipped


@dataclass(frozen=True)
class DrGrpoLoss:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): a long wrong response is not punished less per token.

    Deviation: any advantage may be combined with it; the paper's is R − mean, ``mean_only``. The divisor is constant.

    J = 1/(N L_max) Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i), with L_max = ``max_tokens``.
    """

    clip: Clip

    def token_weights(self, lengths: Int[Tensor, " responses"], max_tokens: int) -> Float[Tensor, " responses"]:
        """Return 1/(N L_max)."""
        return torch.full((len(lengths),), 1.0 / (max(1, len(lengths)) * max_tokens), dtype=torch.float64)

    def surrogate(self, tokens: LossTokens) -> Surrogate:
        """Compute min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
