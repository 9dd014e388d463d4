from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.deviations import GroupDeviations


class WorstClient(Wire):
    """Worst case over clients (Coste et al. 2024): R_i = min_k a_k s̃_ki."""

    kind: Literal["worst"] = "worst"

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        return np.asarray(group.calibrated.min(axis=0))
