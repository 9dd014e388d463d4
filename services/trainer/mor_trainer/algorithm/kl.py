"""Per-token estimators of KL(policy ‖ reference) from sampled tokens (J. Schulman, "Approximating KL divergence")."""

from __future__ import annotations

from jaxtyping import Float
from mor_core.algorithms import Kl
from torch import Tensor


def k1(policy: Float[Tensor, "*n"], reference: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Compute log π − log π_ref: unbiased, large variance, may be negative."""
    return policy - reference


def k2(policy: Float[Tensor, "*n"], reference: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Compute ½ (log π − log π_ref)²: biased, small variance; its plain gradient is unbiased for that of the KL."""
    return 0.5 * (policy - reference).square()


def k3(policy: Float[Tensor, "*n"], reference: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Compute π_ref/π − 1 − log(π_ref/π): unbiased and never negative."""
    log_ratio = reference - policy
    return log_ratio.expm1() - log_ratio


def penalty(
    policy: Float[Tensor, "*n"],
    reference: Float[Tensor, "*n"],
    ratio: Float[Tensor, "*n"],
    config: Kl,
) -> Float[Tensor, "*n"]:
    """Compute the penalty of each token. ``ratio``: π/sampler of the token, with gradient.

    Deviation from GRPO (arXiv 2402.03300, eq. 4), which adds plain k3: estimators are weighted by the ratio unless
    ``corrected`` is false. Differentiating k1 or k3 at sampled tokens ignores that the tokens themselves depend on π.
    With the weight, ``E_sampler[(π/sampler)·k] = E_π[k] = KL`` holds as a function of π, so the gradient is the KL's
    too (k3: DeepSeek-V3.2, arXiv 2512.02556, eq. 7). The gradient of k2 is score function times log-ratio, which is the
    KL's gradient under π already; its weight therefore carries no gradient.

    ratio · k, or k where it is not corrected.
    """
    match config.estimator:
        case "k1":
            estimate = k1(policy, reference)
        case "k2":
            estimate, ratio = k2(policy, reference), ratio.detach()
        case "k3":
            estimate = k3(policy, reference)
    return ratio * estimate if config.corrected else estimate
