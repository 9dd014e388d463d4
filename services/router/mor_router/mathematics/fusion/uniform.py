from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.deviations import GroupDeviations


class Uniform(Wire):
    """Mean with the same weight for every client: R_i = mean_k a_k s̃_ki."""

    kind: Literal["uniform"] = "uniform"

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        return np.asarray(group.calibrated.mean(axis=0))
