from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.panel import Panel


class WorstClient(Wire):
    """R_i = min_k a_k s̃_ki: a response is as good as its harshest judge says (Coste et al. 2024, worst-case)."""

    kind: Literal["worst"] = "worst"

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]:
        return np.asarray(panel.calibrated.min(axis=0))
