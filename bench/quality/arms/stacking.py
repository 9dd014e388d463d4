from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from quality.arms.arm import Score
from quality.arms.uniform import standardise, standardisers
from quality.group_scores import AnchorPairs, GroupScores, Rewards

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Candidates for the ridge penalty."""
_FOLDS = 5
"""Folds of the cross-validation that chooses among them."""
_STEPS = 50
"""Bound on Newton's steps, which mostly end earlier."""


Units = Callable[[GroupScores], Float[ndarray, "groups clients size"]]


class Stacking:
    """Linear stacking, R_i = Σ_k β_k z_ki with β by logistic regression on the anchors (Wolpert 1992).

    A client has one weight for all inputs. The ridge penalty is chosen by cross-validation; a weight may be negative.
    """

    def __init__(self, title: str = "stacking (logistic regression)", *, mor_units: bool = False) -> None:
        """Divide scores by the standard deviation of their differences or, with ``mor_units``, standardise as MoR."""
        self.title = title
        self._mor_units = mor_units

    def fit(self, anchors: AnchorPairs) -> Score:
        units = _mor_units(anchors) if self._mor_units else _deviations(anchors)
        served = units(anchors.pairs)
        differences = served[:, :, 0] - served[:, :, 1]
        fold = np.random.default_rng(0).permutation(len(differences)) % _FOLDS

        def held_out_loss(penalty: float) -> float:
            margins = np.concatenate(
                [differences[fold == held] @ regress(differences[fold != held], penalty) for held in range(_FOLDS)]
            )
            return float(np.logaddexp(0, -margins).mean())

        weights = regress(differences, min(_PENALTIES, key=held_out_loss))

        def score(groups: GroupScores) -> Rewards:
            return np.asarray(np.einsum("k,nkg->ng", weights, units(groups)))

        return score


def _deviations(anchors: AnchorPairs) -> Units:
    differences = anchors.pairs.scores[:, :, 0] - anchors.pairs.scores[:, :, 1]
    scale = np.maximum(np.sqrt(np.square(differences).mean(axis=0)), 1e-12)[:, None]
    return lambda groups: groups.scores / scale


def _mor_units(anchors: AnchorPairs) -> Units:
    units = standardisers(anchors)
    return lambda groups: standardise(groups, units)


def regress(differences: Float[ndarray, "pairs clients"], penalty: float) -> Float[ndarray, " clients"]:
    """Find argmin_β Σ_n −log σ(β·d_n) + penalty/2 · ‖β‖², by Newton's method with step halving."""

    def loss(weights: Float[ndarray, " clients"]) -> float:
        return float(np.logaddexp(0, -differences @ weights).sum() + penalty / 2 * weights @ weights)

    weights = np.zeros(differences.shape[1])
    for _ in range(_STEPS):
        wrong = 1 / (1 + np.exp(np.clip(differences @ weights, -50, 50)))
        gradient = penalty * weights - differences.T @ wrong
        curvature = (differences * (wrong * (1 - wrong))[:, None]).T @ differences + penalty * np.eye(len(weights))
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > loss(weights):
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-8:
            break
    return np.asarray(weights)
