from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.deviations import GroupDeviations


class Median(Wire):
    """Weighted median over clients: R_i = the a_k s̃_ki with half of the weight on either side.

    Where the lower half ends exactly at one half, the two middle scores are averaged, as in the plain median.
    """

    kind: Literal["median"] = "median"

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        order = np.argsort(group.calibrated, axis=0, kind="stable")
        scores = np.take_along_axis(group.calibrated, order, axis=0)
        below = np.cumsum(group.weights[order], axis=0)
        last = len(scores) - 1
        lower = np.minimum((below < 0.5 - 1e-12).sum(axis=0), last)
        upper = np.minimum((below <= 0.5 + 1e-12).sum(axis=0), last)
        middle = np.take_along_axis(scores, np.stack([lower, upper]), axis=0)
        return np.asarray(middle.mean(axis=0))
