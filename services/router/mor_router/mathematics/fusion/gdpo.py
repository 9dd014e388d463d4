from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray
from pydantic import ConfigDict, Field

from mor_router.mathematics.fusion.deviations import GroupDeviations


class Gdpo(Wire):
    """GDPO (arXiv 2601.05242) with a floor; without it an indifferent client would count as much as the rest.

    R_i = Σ_k w_k (c_ki − mean_i c_k) / max(std_i c_k, floor): each client is standardised within the group first.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    kind: Literal["gdpo"] = "gdpo"
    floor: float = Field(0.1, gt=0)
    """Smallest standard deviation that is divided by, logits."""

    def __call__(self, group: GroupDeviations) -> Float[ndarray, " group"]:
        deviation = group.calibrated - group.calibrated.mean(axis=1, keepdims=True)
        spread = np.maximum(group.calibrated.std(axis=1, keepdims=True), self.floor)
        return np.asarray(group.weights @ (deviation / spread))
