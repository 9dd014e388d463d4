from __future__ import annotations

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.standardise import Standardiser
from numpy import ndarray

from quality.arms.arm import Score
from quality.arms.uniform import standardise, standardisers
from quality.scored import Anchors, Groups, Rewards

_PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0)
_FOLDS = 5
_STEPS = 50


class Stacking:
    """R_i = Σ_k β_k s̃_ki with β by logistic regression on the anchors (Wolpert 1992): one weight a client, everywhere.

    The ridge penalty is chosen by cross-validation; a weight may be negative.
    """

    title = "stacking (logistic regression)"

    def fit(self, anchors: Anchors) -> Score:
        units: tuple[Standardiser, ...] = standardisers(anchors)
        served = standardise(anchors.pairs, units)
        differences = served[:, :, 0] - served[:, :, 1]
        fold = np.random.default_rng(0).permutation(len(differences)) % _FOLDS

        def held_out_loss(penalty: float) -> float:
            margins = np.concatenate(
                [differences[fold == held] @ regress(differences[fold != held], penalty) for held in range(_FOLDS)]
            )
            return float(np.logaddexp(0, -margins).mean())

        weights = regress(differences, min(_PENALTIES, key=held_out_loss))

        def score(groups: Groups) -> Rewards:
            return np.asarray(np.einsum("k,nkg->ng", weights, standardise(groups, units)))

        return score


def regress(differences: Float[ndarray, "pairs clients"], penalty: float) -> Float[ndarray, " clients"]:
    """argmin_β Σ_n −log σ(β·d_n) + penalty/2 · ‖β‖², by Newton's method with step halving."""

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
