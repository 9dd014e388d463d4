"""How much like the policy's responses an anchor is, where nobody can label those.

The density ratio r(z) = p_policy(z) / p_anchors(z) of embedded responses z comes from a classifier that tells the two
apart (Bickel, Brückner & Scheffer 2009): r = odds · n_anchors / n_policy. Each half of the anchors is rated by one that
did not see it. An anchor's weight is the mean of its two responses', clipped to [1/4, 4] times the mean weight: a
policy that has moved far from all anchors must not leave the fit to the few that are nearest.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy import ndarray

LIMIT = 4.0
_PRECISION = 1.0


def weights(
    anchors: Float[ndarray, "anchors two features"], policy: Float[ndarray, "responses features"]
) -> Float[ndarray, " anchors"]:
    """Importance of each anchor for the policy's distribution; mean about 1, within [1/4, 4].

    Raises:
        ValueError: fewer than two anchors, or no responses.
    """
    if len(anchors) < 2 or not len(policy):
        raise ValueError(f"{len(anchors)} anchors and {len(policy)} responses; two and one at least are needed")
    half = np.random.default_rng(0).permutation(len(anchors)) % 2
    ratio = np.zeros(len(anchors))
    for held in (0, 1):
        seen = anchors[half != held].reshape(-1, anchors.shape[2])
        odds = _log_odds(seen, policy, anchors[half == held].reshape(-1, anchors.shape[2]))
        ratio[half == held] = np.exp(np.clip(odds, -20, 20)).reshape(-1, 2).mean(axis=1)
    return np.asarray(np.clip(ratio / ratio.mean(), 1 / LIMIT, LIMIT))


def thin(importance: Float[ndarray, " anchors"], uniform: Float[ndarray, " anchors"]) -> Bool[ndarray, " anchors"]:
    """Which anchors stay, each with probability weight / largest weight (rejection sampling): those that stay are
    distributed as the weights say, and each counts once, so cross-validation stays honest. ``uniform`` in [0, 1)."""
    return np.asarray(uniform < importance / importance.max())


def effective_share(importance: Float[ndarray, " anchors"]) -> float:
    """Kish's effective sample size as a share of the anchors."""
    return float(importance.sum() ** 2 / np.square(importance).sum() / len(importance))


def _log_odds(
    anchors: Float[ndarray, "seen features"],
    policy: Float[ndarray, "responses features"],
    at: Float[ndarray, "asked features"],
) -> Float[ndarray, " asked"]:
    """log r at some points: ridge logistic regression with both classes of equal weight, so the odds are the ratio."""
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
