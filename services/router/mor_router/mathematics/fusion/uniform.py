from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.panel import Panel


class Uniform(Wire):
    """R_i = mean_k a_k s̃_ki: every client counts the same."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]:
        return np.asarray(panel.calibrated.mean(axis=0))
