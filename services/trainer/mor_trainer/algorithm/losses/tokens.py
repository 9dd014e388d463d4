"""Response tokens of a micro-batch as the loss takes them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """Response tokens, flat, in row order. Responses are whole: none has tokens in another micro-batch."""

    policy: Float[Tensor, " n"]
    """Log-probability under the policy, with gradient, nats."""
    old: Float[Tensor, " n"]
    """The same under the policy as it was when the step began, or under the engine where nothing is corrected: what
    the clip range is measured from."""
    engine: Float[Tensor, " n"]
    """Log-probability as the engine sampled it."""
    reference: Float[Tensor, " n"] | None
    """Log-probability under the reference policy; ``None`` leaves the penalty out."""
    advantage: Float[Tensor, " n"]
    weight: Float[Tensor, " n"]
    """Share of the token in the update, by ``Objective.shares``."""
    response: Int[Tensor, " n"]
    """Number of the response within the micro-batch, from 0."""

    @property
    def log_ratio(self) -> Float[Tensor, " n"]:
        """log ρ = log π − log π_old."""
        return self.policy - self.old


def by_response(values: Float[Tensor, " n"], response: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    """For each token, the sum of ``values`` over the tokens of its response."""
    return values.new_zeros(len(values)).index_add(0, response, values)[response]
