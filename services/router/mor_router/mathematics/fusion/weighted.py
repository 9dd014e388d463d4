from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.deviations import GroupDeviations


class Weighted(Wire):
    """Mixture of the clients' log-odds, as the gate was fitted: R_i = Σ_k w_k a_k s̃_ki."""

    kind: Literal["weighted"] = "weighted"

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        return np.asarray(group.weights @ group.calibrated)
