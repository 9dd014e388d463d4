"""Importance weights of anchors for the current policy, for objectives without a labeller.

Deviations from Bickel, Brückner & Scheffer (2009): the weights are cross-fitted, so each half of the anchors is rated
by a classifier that did not see it, and they are clipped to [1/4, 4] times their mean. Without the clip, a policy that
moved far from all anchors would leave the fit to the few nearest.

    r(z) = p_policy(z) / p_anchors(z) = odds(z) · n_anchors / n_policy

for embedded responses z; the odds come from a classifier between policy and anchors. An anchor's weight is the mean r
of its two responses.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

LIMIT = 4.0
"""Largest weight, and inverse of the smallest, in units of the mean weight."""
_PRECISION = 1.0
"""Ridge penalty on the classifier's slope."""


def importance_weights(
    anchors: Float[ndarray, "anchors two features"], policy: Float[ndarray, "responses features"]
) -> Float[ndarray, " anchors"]:
    """Compute the importance of each anchor for the policy's distribution: mean about 1, within [1/4, 4].

    Raises:
        ValueError: fewer than two anchors, or no responses.
    """
    if len(anchors) < 2 or not len(policy):
        raise ValueError(f"got {len(anchors)} anchors and {len(policy)} responses; at least 2 and 1 are needed")
    half = np.random.default_rng(0).permutation(len(anchors)) % 2
    ratio = np.zeros(len(anchors))
    for held in (0, 1):
        seen = anchors[half != held].reshape(-1, anchors.shape[2])
        odds = _log_odds(seen, policy, anchors[half == held].reshape(-1, anchors.shape[2]))
        ratio[half == held] = np.exp(np.clip(odds, -20, 20)).reshape(-1, 2).mean(axis=1)
    return np.asarray(np.clip(ratio / ratio.mean(), 1 / LIMIT, LIMIT))


def thin(importance: Float[ndarray, " anchors"], uniform: Float[ndarray, " anchors"]) -> Bool[ndarray, " anchors"]:
    """Draw the anchors to keep by rejection sampling: each with probability weight / largest weight.

    The kept anchors follow the weighted distribution and each counts once, so cross-validation stays valid.
    ``uniform`` holds one number in [0, 1) for each anchor.
    """
    return np.asarray(uniform < importance / importance.max())


def effective_share(importance: Float[ndarray, " anchors"]) -> float:
    """Compute Kish's effective sample size as a share of the number of anchors."""
    return float(importance.sum() ** 2 / np.square(importance).sum() / len(importance))


def _log_odds(
    anchors: Float[ndarray, "seen features"],
    policy: Float[ndarray, "responses features"],
    at: Float[ndarray, "points features"],
) -> Float[ndarray, " points"]:
    """Estimate log r at some points by ridge logistic regression; both classes weigh the same, so the odds are r."""
    points = torch.from_numpy(np.concatenate([anchors, policy]))
    label = torch.cat([torch.zeros(len(anchors)), torch.ones(len(policy))]).double()
    share = torch.cat([torch.full((len(anchors),), 0.5 / len(anchors)), torch.full((len(policy),), 0.5 / len(policy))])
    slope = torch.zeros(points.shape[1], dtype=torch.float64, requires_grad=True)
    level = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([slope, level], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            points @ slope + level, label, weight=share, reduction="sum"
        )
        loss = loss + _PRECISION / (2 * len(points)) * slope.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(at @ slope.detach().numpy() + level.item())
