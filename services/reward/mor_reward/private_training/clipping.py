"""Clipping of gradients per unit of privacy: the bound on which the accounting rests."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float


def clipped(gradients: Float[np.ndarray, "units dim"], bound: float) -> Float[np.ndarray, "units dim"]:
    """Scale each row to a Euclidean norm of at most ``bound``. A row that is not finite becomes zero."""
    finite = np.isfinite(gradients).all(axis=1, keepdims=True)
    safe = np.where(finite, gradients, 0.0)
    largest = np.abs(safe).max(axis=1, keepdims=True, initial=0.0)
    direction = safe / np.where(largest > 0, largest, 1.0)  # whose squares are finite, however large the gradient
    lengths = np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1.0)
    scaled: Float[np.ndarray, "units dim"] = direction * np.minimum(largest, bound / lengths)
    return scaled
