"""Response tokens of a micro-batch with all that the loss needs."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LossTokens:
    """Response tokens of a micro-batch, flat. Responses are whole: none has tokens in another micro-batch."""

    policy: Float[Tensor, " n"]
    """Log-probability under the policy, with gradient, nats."""
    old: Float[Tensor, " n"]
    """Log-probability under the policy as the step began, or under the engine where nothing is corrected: the centre of
    the clip range."""
    engine: Float[Tensor, " n"]
    """Log-probability under the engine that sampled the token."""
    reference: Float[Tensor, " n"] | None
    """Log-probability under the reference policy; ``None`` leaves the penalty out."""
    advantage: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """Weight of the token in the update, by ``PolicyLoss.token_weights``."""
    response: Int[Tensor, " n"]
    """Number of the response within the micro-batch, from 0."""

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """log ρ = log π − log π_old."""
        return self.policy - self.old


def by_response(values: Float[Tensor, " n"], response: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return, for each token, the sum of ``values`` over the tokens of its response."""
    return values.new_zeros(len(values)).index_add(0, response, values)[response]
