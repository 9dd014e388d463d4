from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.fusion.panel import Panel


class Median(Wire):
    """R_i = the weighted median over clients of a_k s̃_ki: half of the weight lies on either side.

    Where the lower half ends exactly at one half, the two middle scores are averaged, as the plain median does.
    """

    kind: Literal["median"] = "median"

    def __call__(self, panel: Panel) -> Float[ndarray, " group"]:
        order = np.argsort(panel.calibrated, axis=0, kind="stable")
        scores = np.take_along_axis(panel.calibrated, order, axis=0)
        below = np.cumsum(panel.weights[order], axis=0)
        last = len(scores) - 1
        lower = np.minimum((below < 0.5 - 1e-12).sum(axis=0), last)
        upper = np.minimum((below <= 0.5 + 1e-12).sum(axis=0), last)
        middle = np.take_along_axis(scores, np.stack([lower, upper]), axis=0)
        return np.asarray(middle.mean(axis=0))
