"""Low-dimensional description of inputs, for arms that learn from few anchors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_DIRECTIONS = 16
"""Number of directions, as in MoR's regions."""


@dataclass(frozen=True)
class Directions:
    """Projection on principal directions of the anchors' embeddings, scaled to unit variance, after a leading 1."""

    mean: Float[ndarray, " features"]
    basis: Float[ndarray, "features directions"]

    def __call__(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs context"]:
        return np.column_stack([np.ones(len(inputs)), (inputs - self.mean) @ self.basis])


def fit_directions(inputs: Float[ndarray, "anchors features"]) -> Directions:
    mean = inputs.mean(axis=0)
    _, scale, rows = np.linalg.svd(inputs - mean, full_matrices=False)
    kept = max(1, min(_DIRECTIONS, int((scale > 1e-6 * max(scale[0], 1e-300)).sum())))
    spread = np.maximum(scale[:kept], 1e-300) / np.sqrt(len(inputs))
    return Directions(mean, rows[:kept].T / spread)
