from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.panel import Panel


class Weighted(Wire):
    """R_i = Σ_k w_k a_k s̃_ki: the mixture of the clients' log-odds, as the gate was fitted."""

    kind: Literal["weighted"] = "weighted"

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]:
        return np.asarray(panel.weights @ panel.calibrated)
