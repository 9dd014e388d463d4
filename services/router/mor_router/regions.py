"""Regions of input space: soft clusters of the anchors' embeddings. Slopes and gate logits live on them.

    φ_m(x) ∝ (1 + ‖P(e(x) − ē) − μ_m‖² / σ²)^(−4)

P are the leading principal directions of the anchors' embeddings, μ_m k-means centres, σ² the mean squared distance of
an anchor to its centre. The heavy tail (a Student kernel, as in van der Maaten & Hinton 2008) makes the
responsibilities of an input that is far from every anchor nearly even: where nothing is known, no region's expert is
preferred.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_DIRECTIONS = 16
_POWER = 4
_RESTARTS = 8
_STEPS = 50


@dataclass(frozen=True)
class Regions:
    mean: Float[ndarray, " features"]
    directions: Float[ndarray, "features directions"]
    centres: Float[ndarray, "regions directions"]
    variance: float
    """Mean squared distance of an anchor to its centre."""

    def responsibilities(self, embeddings: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs regions"]:
        """φ(x): non-negative, sums to 1 over regions."""
        squared = _squared_distances((embeddings - self.mean) @ self.directions, self.centres)
        kernel = np.power(1 + squared / self.variance, -_POWER)
        return np.asarray(kernel / kernel.sum(axis=1, keepdims=True))


def fit_regions(embeddings: Float[ndarray, "inputs features"], count: int) -> Regions:
    """``count`` regions (fewer when fewer inputs are distinct). The same inputs always give the same regions."""
    mean = embeddings.mean(axis=0)
    _, scale, rows = np.linalg.svd(embeddings - mean, full_matrices=False)
    kept = max(1, min(_DIRECTIONS, int((scale > 1e-9 * max(scale[0], 1e-300)).sum())))
    directions = rows[:kept].T
    points = (embeddings - mean) @ directions
    count = max(1, min(count, len(np.unique(points.round(9), axis=0))))
    random = np.random.default_rng(0)
    best = min((_kmeans(points, count, random) for _ in range(_RESTARTS)), key=lambda found: found[1])
    return Regions(mean, directions, best[0], max(best[1], 1e-12))


def _kmeans(
    points: Float[ndarray, "inputs directions"], count: int, random: np.random.Generator
) -> tuple[Float[ndarray, "regions directions"], float]:
    """Lloyd's algorithm from k-means++ seeds: centres and the mean squared distance to them."""
    centres = points[[random.integers(len(points))]]
    while len(centres) < count:
        nearest = _squared_distances(points, centres).min(axis=1)
        centres = np.concatenate([centres, points[[random.choice(len(points), p=nearest / nearest.sum())]]])
    for _ in range(_STEPS):
        member = _squared_distances(points, centres).argmin(axis=1)
        moved = np.stack(
            [points[member == k].mean(axis=0) if (member == k).any() else centres[k] for k in range(count)]
        )
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres, float(_squared_distances(points, centres).min(axis=1).mean())


def _squared_distances(
    points: Float[ndarray, "inputs directions"], centres: Float[ndarray, "regions directions"]
) -> Float[ndarray, "inputs regions"]:
    return np.asarray(((points[:, None, :] - centres[None, :, :]) ** 2).sum(axis=-1))
