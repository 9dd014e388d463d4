"""Regions of input space: soft clusters of the anchors' embeddings, at several scales side by side.

Deviation from soft k-means: the kernel is heavy-tailed (Student, as in van der Maaten & Hinton 2008), which makes the
responsibilities of an input far from every anchor nearly even. Where nothing is known, no region's expert is preferred.

    φ_m(x) ∝ (1 + ‖P(e(x) − ē) − μ_m‖² / σ²)^(−4)        summing to 1 over the regions of each scale

P are the leading principal directions of the anchors' embeddings, μ_m k-means centres, σ² the mean squared distance of
an anchor to the centres of the scale. No number of regions has to be chosen: the more regions two inputs share, from
coarse to fine, the more similar they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

SCALES = (2, 3, 5, 8, 12, 16, 24)
"""Regions of each scale; a scale is used where there are enough inputs for it."""

_DIRECTIONS = 16
"""Most principal directions."""
_POWER = 4
"""Exponent of the Student kernel."""
_RESTARTS = 3
"""Runs of k-means for each scale; the best is kept."""
_STEPS = 50
"""Bound on the steps of k-means, which mostly ends earlier."""
_MOST_INPUTS = 1024
"""Inputs that clustering looks at, to bound the time of a fit."""


@dataclass(frozen=True)
class Regions:
    """Cluster centres of all scales in the principal directions of the anchors' embeddings."""

    mean: Float[ndarray, " features"]
    directions: Float[ndarray, "features directions"]
    centres: Float[ndarray, "regions directions"]
    """Coarsest scale first."""
    scales: tuple[int, ...]
    """Regions of each scale."""
    variances: tuple[float, ...]
    """σ² of each scale: mean squared distance of an input to its centre."""

    def responsibilities(self, embeddings: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs regions"]:
        """Compute φ(x): non-negative, summing to 1 over the regions of each scale."""
        squared = squared_distances((embeddings - self.mean) @ self.directions, self.centres)
        kernel = np.power(1 + squared / np.repeat(self.variances, self.scales), -_POWER)
        starts = np.cumsum((0, *self.scales[:-1]))
        return np.asarray(kernel / np.repeat(np.add.reduceat(kernel, starts, axis=1), self.scales, axis=1))

    def cells(self, embeddings: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs regions"]:
        """Return 1 for the nearest centre of each scale, 0 for all others."""
        squared = squared_distances((embeddings - self.mean) @ self.directions, self.centres)
        scales = np.split(squared, np.cumsum(self.scales[:-1]), axis=1)
        return np.concatenate([np.eye(scale.shape[1])[scale.argmin(axis=1)] for scale in scales], axis=1)


def fit_regions(embeddings: Float[ndarray, "inputs features"], scales: Sequence[int] = SCALES) -> Regions:
    """Find regions at each of ``scales`` with at least two inputs a region; one region where there is no such scale.

    The same inputs always give the same regions. Of more than 1,024 inputs, a random 1,024 are used.
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
    """Run Lloyd's algorithm from k-means++ seeds; return the centres and the mean squared distance to them."""
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
    """Compute the squared Euclidean distance of each point to each centre."""
    between = -2 * points @ centres.T
    between += np.square(points).sum(axis=1)[:, None]
    between += np.square(centres).sum(axis=1)
    return np.asarray(np.maximum(between, 0.0))
