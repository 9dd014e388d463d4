"""Regions of input space: soft clusters of the anchors' embeddings, at several scales side by side.

    φ_m(x) ∝ (1 + ‖P(e(x) − ē) − μ_m‖² / σ²)^(−4)        summing to 1 over the regions of each scale

P are the leading principal directions of the anchors' embeddings, μ_m k-means centres, σ² the mean squared distance of
an anchor to the centres of the scale. The heavy tail (a Student kernel, as in van der Maaten & Hinton 2008) makes the
responsibilities of an input that is far from every anchor nearly even: where nothing is known, no region's expert is
preferred.

No number of regions has to be chosen: two inputs are alike as far as they share regions from coarse to fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

SCALES = (2, 3, 5, 8, 12, 16, 24)
"""Regions by scale, as many scales as there are inputs for."""

_DIRECTIONS = 16
_POWER = 4
_RESTARTS = 3
_STEPS = 50
_MOST_INPUTS = 1024


@dataclass(frozen=True)
class Regions:
    mean: Float[ndarray, " features"]
    directions: Float[ndarray, "features directions"]
    centres: Float[ndarray, "regions directions"]
    """Coarsest scale first."""
    scales: tuple[int, ...]
    """Regions of each scale."""
    variances: tuple[float, ...]
    """Of each scale, the mean squared distance of an input to its centre."""

    def responsibilities(self, embeddings: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs regions"]:
        """φ(x): non-negative, sums to 1 over the regions of each scale."""
        squared = squared_distances((embeddings - self.mean) @ self.directions, self.centres)
        kernel = np.power(1 + squared / np.repeat(self.variances, self.scales), -_POWER)
        starts = np.cumsum((0, *self.scales[:-1]))
        return np.asarray(kernel / np.repeat(np.add.reduceat(kernel, starts, axis=1), self.scales, axis=1))

    def cells(self, embeddings: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs regions"]:
        """1 for the nearest centre of each scale, 0 for all others."""
        squared = squared_distances((embeddings - self.mean) @ self.directions, self.centres)
        scales = np.split(squared, np.cumsum(self.scales[:-1]), axis=1)
        return np.concatenate([np.eye(scale.shape[1])[scale.argmin(axis=1)] for scale in scales], axis=1)


def fit_regions(embeddings: Float[ndarray, "inputs features"], scales: Sequence[int] = SCALES) -> Regions:
    """Regions at each of ``scales`` that leaves two inputs a region; one region where none does.

    The same inputs always give the same regions; of more than 1,024, a random 1,024 are looked at.
    """
    random = np.random.default_rng(0)
    if len(embeddings) > _MOST_INPUTS:
        embeddings = embeddings[np.sort(random.permutation(len(embeddings))[:_MOST_INPUTS])]
    mean = embeddings.mean(axis=0)
    _, scale, rows = np.linalg.svd(embeddings - mean, full_matrices=False)
    kept = max(1, min(_DIRECTIONS, int((scale > 1e-9 * max(scale[0], 1e-300)).sum())))
    directions = rows[:kept].T
    points = (embeddings - mean) @ directions
    most = min(len(points) // 2, len(np.unique(points.round(9), axis=0)))
    counts = [count for count in scales if count <= most] or [1]
    found = [
        min((_kmeans(points, count, random) for _ in range(_RESTARTS)), key=lambda run: run[1]) for count in counts
    ]
    return Regions(
        mean=mean,
        directions=directions,
        centres=np.concatenate([centres for centres, _ in found]),
        scales=tuple(counts),
        variances=tuple(max(variance, 1e-12) for _, variance in found),
    )


def _kmeans(
    points: Float[ndarray, "inputs directions"], count: int, random: np.random.Generator
) -> tuple[Float[ndarray, "regions directions"], float]:
    """Lloyd's algorithm from k-means++ seeds: centres and the mean squared distance to them."""
    centres = points[[random.integers(len(points))]]
    while len(centres) < count:
        nearest = squared_distances(points, centres).min(axis=1)
        centres = np.concatenate([centres, points[[random.choice(len(points), p=nearest / nearest.sum())]]])
    for _ in range(_STEPS):
        member = np.eye(count)[squared_distances(points, centres).argmin(axis=1)]
        size = member.sum(axis=0)[:, None]
        moved = np.where(size > 0, (member.T @ points) / np.maximum(size, 1), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres, float(squared_distances(points, centres).min(axis=1).mean())


def squared_distances(
    points: Float[ndarray, "inputs directions"], centres: Float[ndarray, "regions directions"]
) -> Float[ndarray, "inputs regions"]:
    between = -2 * points @ centres.T
    between += np.square(points).sum(axis=1)[:, None]
    between += np.square(centres).sum(axis=1)
    return np.asarray(np.maximum(between, 0.0))
