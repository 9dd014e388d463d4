"""Features that need no model: hashed words for text; colours, edges and layout for images.

Good enough to tell kinds of pictures and questions apart, which is what regions of input space need; a text or image
model by setting tells apart more.
"""

from __future__ import annotations

import itertools
import re
import zlib

import numpy as np
from jaxtyping import Float
from mor_core import images
from numpy import ndarray
from PIL import Image

_TEXT_FEATURES = 256
_SIDE = 64
_COLOUR_LEVELS = 4
_ORIENTATIONS = 8
_CELLS = 2
_WORD = re.compile(r"\w+")


def unit(vector: Float[ndarray, " features"]) -> Float[ndarray, " features"]:
    """Scaled to length 1; a zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


class HashedWords:
    """Words and word pairs, hashed with a sign (Weinberger et al. 2009); counts enter as 1 + log(count)."""

    name = f"hashed-words-{_TEXT_FEATURES}"
    size = _TEXT_FEATURES

    def __call__(self, text: str) -> Float[ndarray, " features"]:
        words = _WORD.findall(text.lower())
        counts: dict[str, int] = {}
        for feature in [*words, *map(" ".join, itertools.pairwise(words))]:
            counts[feature] = counts.get(feature, 0) + 1
        vector = np.zeros(_TEXT_FEATURES)
        for feature, count in counts.items():
            code = zlib.crc32(feature.encode())
            vector[(code >> 1) % _TEXT_FEATURES] += (1 + np.log(count)) * (1 if code & 1 else -1)
        return unit(vector)


class ColoursAndEdges:
    """Colour histogram, and a histogram of edge orientations in each quarter of the picture, at 64 × 64 pixels."""

    name = f"colours-and-edges-{_SIDE}"
    size = _COLOUR_LEVELS**3 + _ORIENTATIONS * _CELLS**2

    def __call__(self, content: bytes) -> Float[ndarray, " features"]:
        picture = images.decode(content).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(picture, dtype=np.float64)
        levels = (pixels * _COLOUR_LEVELS / 256).astype(int)
        colour = np.bincount(
            (levels[..., 0] * _COLOUR_LEVELS + levels[..., 1]).ravel() * _COLOUR_LEVELS + levels[..., 2].ravel(),
            minlength=_COLOUR_LEVELS**3,
        )
        # Square roots make the Euclidean distance of histograms the Hellinger distance.
        edges = unit(np.sqrt(_edges(pixels.mean(axis=2))))
        return np.asarray(np.concatenate([unit(np.sqrt(colour)), edges]) / np.sqrt(2))


def _edges(grey: Float[ndarray, "height width"]) -> Float[ndarray, " features"]:
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    turn = ((np.arctan2(down, right) % np.pi) * _ORIENTATIONS / np.pi).astype(int) % _ORIENTATIONS
    cell = np.arange(_SIDE) * _CELLS // _SIDE
    place = cell[:, None] * _CELLS + cell[None, :]
    cells = np.bincount(
        (place * _ORIENTATIONS + turn).ravel(), weights=strength.ravel(), minlength=_ORIENTATIONS * _CELLS**2
    )
    return np.asarray(cells)
