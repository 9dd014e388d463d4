"""Features without a model: hashed words for text; colours, edges and layout for images.

They separate kinds of pictures and questions, which the regions of input space need. A text or image model, by
setting, separates more finely.
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
"""Length of a text vector, well above the number of words in a question, so that few of them collide."""
_SIDE_PIXELS = 64
"""Side to which pictures are scaled: colours, layout and dominant edges survive it."""
_COLOUR_LEVELS = 4
"""Levels per colour channel: 64 colours in the histogram."""
_ORIENTATIONS = 8
"""Edge orientations over 180°."""
_CELLS = 2
"""Cells per side in which edges are counted: quarters of the picture."""
_MOST_CHARACTERS = 32 << 10
"""Longest text that is hashed: some 6,000 words, in 10 ms."""
_WORD = re.compile(r"\w+")


def unit(vector: Float[ndarray, " features"]) -> Float[ndarray, " features"]:
    """Scale a vector to length 1; a zero vector stays zero."""
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


class HashedWords:
    """Words and word pairs, hashed with a sign (Weinberger et al. 2009); a count enters as 1 + log(count)."""

    name = f"hashed-words-{_TEXT_FEATURES}"
    size = _TEXT_FEATURES
    most_characters = _MOST_CHARACTERS

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
    """Colour histogram, and edge orientation histograms of the picture's quarters, at 64 × 64 pixels."""

    name = f"colours-and-edges-{_SIDE_PIXELS}"
    size = _COLOUR_LEVELS**3 + _ORIENTATIONS * _CELLS**2

    def __call__(self, content: bytes) -> Float[ndarray, " features"]:
        picture = images.decode(content).resize((_SIDE_PIXELS, _SIDE_PIXELS), Image.Resampling.BILINEAR)
        channels = np.moveaxis(np.asarray(picture), 2, 0).astype(np.int16, order="C")
        red, green, blue = channels * _COLOUR_LEVELS >> 8
        colour = np.bincount(
            ((red * _COLOUR_LEVELS + green) * _COLOUR_LEVELS + blue).ravel(), minlength=_COLOUR_LEVELS**3
        )
        # Square roots make the Euclidean distance of histograms the Hellinger distance.
        edges = unit(np.sqrt(_edges(channels.sum(axis=0) / 3)))
        return np.asarray(np.concatenate([unit(np.sqrt(colour)), edges]) / np.sqrt(2))


_ROW = np.arange(_SIDE_PIXELS) * _CELLS // _SIDE_PIXELS
_CELL = _ROW[:, None] * _CELLS + _ROW
"""Cell of each pixel."""


def _edges(grey: Float[ndarray, "height width"]) -> Float[ndarray, " features"]:
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    direction = np.arctan2(down, right)
    direction[direction < 0] += np.pi
    orientation = (direction * _ORIENTATIONS / np.pi).astype(np.uint8) % _ORIENTATIONS
    cells = np.bincount(
        (_CELL * _ORIENTATIONS + orientation).ravel(), weights=strength.ravel(), minlength=_ORIENTATIONS * _CELLS**2
    )
    return np.asarray(cells)
