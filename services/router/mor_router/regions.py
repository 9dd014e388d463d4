"""Regions of input space: soft clusters of the anchors' embeddings. Slopes and gate logits live on them.

    φ_m(x) ∝ (1 + ‖P(e(x) − ē) − μ_m‖² / σ²)^(−4)

P are the leading principal directions of the anchors' embeddings, μ_m k-means centres, σ² the mean squared distance of
an anchor to its centre. The heavy tail (a Student kernel, as in van der Maaten & Hinton 2008) makes the
responsibilities of an input that is far from every anchor nearly even: where nothing is known, no region's expert is
preferred.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_DIRECTIONS = 16
_POWER = 4
_RESTARTS = 8
_STEPS = 50
_MOST_INPUTS = 1024


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


def fit_regions(embeddings: Float[ndarray, "inputs features"], counts: Sequence[int]) -> list[Regions]:
    """For each of ``counts`` that many regions (fewer when fewer inputs are distinct), in the same directions.

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
    distinct = len(np.unique(points.round(9), axis=0))
    found = []
    for count in counts:
        wanted = max(1, min(count, distinct))
        centres, variance = min((_kmeans(points, wanted, random) for _ in range(_RESTARTS)), key=lambda run: run[1])
        found.append(Regions(mean, directions, centres, max(variance, 1e-12)))
    return found


def _kmeans(
    points: Float[ndarray, "inputs directions"], count: int, random: np.random.Generator
) -> tuple[Float[ndarray, "regions directions"], float]:
    """Lloyd's algorithm from k-means++ seeds: centres and the mean squared distance to them."""
    centres = points[[random.integers(len(points))]]
    while len(centres) < count:
        nearest = _squared_distances(points, centres).min(axis=1)
        centres = np.concatenate([centres, points[[random.choice(len(points), p=nearest / nearest.sum())]]])
    for _ in range(_STEPS):
        member = np.eye(count)[_squared_distances(points, centres).argmin(axis=1)]
        size = member.sum(axis=0)[:, None]
        moved = np.where(size > 0, (member.T @ points) / np.maximum(size, 1), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    return centres, float(_squared_distances(points, centres).min(axis=1).mean())


def _squared_distances(
    points: Float[ndarray, "inputs directions"], centres: Float[ndarray, "regions directions"]
) -> Float[ndarray, "inputs regions"]:
    between = -2 * points @ centres.T
    between += np.square(points).sum(axis=1)[:, None]
    between += np.square(centres).sum(axis=1)
    return np.asarray(np.maximum(between, 0.0))
