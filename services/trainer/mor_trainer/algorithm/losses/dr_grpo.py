"""GRPO done right."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from mor_core.algorithms import Clip
from torch import Tensor

from mor_trainer.algorithm.losses.objective import Surrogate, clipped
from mor_trainer.algorithm.losses.tokens import Tokens


@dataclass(frozen=True)
class DrGrpoObjective:
    """J = 1/(N L_max) Σ_i Σ_t min(ρ_it A_i, clip(ρ_it, 1 − ε_low, 1 + ε_high) A_i): the divisor is constant, so that a
    long wrong response is not punished less per token (Dr.GRPO, arXiv 2503.20783, section 3.2).

    The paper goes with the advantage R − mean, ``mean_only``.
    """

    clip: Clip

    def shares(self, lengths: Int[Tensor, " rows"], max_tokens: int) -> Float[Tensor, " rows"]:
        """1/(N L_max)."""
        return torch.full((len(lengths),), 1.0 / (max(1, len(lengths)) * max_tokens), dtype=torch.float64)

    def surrogate(self, tokens: Tokens) -> Surrogate:
        """min(ρ A, clip(ρ) A)."""
        return clipped(tokens.log_ratio.exp(), tokens.advantage, self.clip)
