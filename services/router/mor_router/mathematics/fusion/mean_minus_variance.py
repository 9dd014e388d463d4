from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray
from pydantic import ConfigDict, Field

from mor_router.mathematics.fusion.deviations import GroupDeviations


class MeanMinusVariance(Wire):
    """Uncertainty-weighted mean (Coste et al. 2024): R_i = μ_i − λ·σ²_i, weighted mean and variance over clients."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["mean_minus_variance"] = "mean_minus_variance"
    penalty: float = Field(0.5, ge=0)
    """λ, per logit."""

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        mean = group.weights @ group.calibrated
        variance = group.weights @ np.square(group.calibrated - mean)
        return np.asarray(mean - self.penalty * variance)
