from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray
from pydantic import ConfigDict, Field

from mor_router.mathematics.fusion.panel import Panel


class MeanMinusVariance(Wire):
    """R_i = μ_i − λ·σ²_i with the weighted mean and variance over clients (Coste et al. 2024, uncertainty-weighted)."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["mean_minus_variance"] = "mean_minus_variance"
    penalty: float = Field(0.5, ge=0)
    """λ, per logit."""

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]:
        mean = panel.weights @ panel.calibrated
        variance = panel.weights @ np.square(panel.calibrated - mean)
        return np.asarray(mean - self.penalty * variance)
