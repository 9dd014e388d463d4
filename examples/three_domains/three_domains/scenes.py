"""Generator of the Detail pictures: scenes of two to four photo cut-outs on plain or graded backgrounds."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageEnhance

from three_domains.detail import ARTICLED, CORNERS, caption, make_questions
from three_domains.questions import PICTURE_SIZE, SPLITS, AnnotatedPicture, Split

_STAMPS: dict[str, tuple[str, ...]] = {
    "bird": ("animals/birds",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "flower": ("plants/flowers",),
    "food": ("food",),
    "vehicle": ("vehicles", "military/vehicles"),
    "coin": ("symbols/money",),
}
# Toys, drawings and parts of things whose kind a person cannot recognise in the picture.
_NOT_OF_ITS_KIND = ("cartoon", "toys", "plastic", "00_symbols", "7spoke", "mirror", "sedan_police")

_EMOJI: dict[str, tuple[str, ...]] = {
    "bird": ("animal-bird",),
    "mammal": ("animal-mammal",),
    "flower": ("plant-flower",),
    "food": ("food-fruit", "food-vegetable"),
    "vehicle": ("transport-ground", "transport-air", "transport-water"),
    "coin": ("money",),
}

_SHARES: dict[Split, float] = {"server": 0.46, "client": 0.24, "anchor": 0.06, "dev": 0.06, "test": 0.18}
_CELL = PICTURE_SIZE // 2


def stamp_files(root: Path) -> dict[str, list[Path]]:
    """Return the photo cut-outs of each kind in the unpacked ``tuxpaint-stamps-default`` package."""
    stamps = root / "usr/share/tuxpaint/stamps"
    found: dict[str, list[Path]] = {}
    for kind, folders in _STAMPS.items():
        files = [path for folder in folders for path in sorted((stamps / folder).rglob("*.png"))]
        found[kind] = [
            path for path in files if not any(word in str(path.relative_to(stamps)) for word in _NOT_OF_ITS_KIND)
        ]
    return found


def emoji_files(root: Path) -> dict[str, list[Path]]:
    """Return the drawings of each kind in the unpacked ``emoji-datasource-google`` package."""
    table = json.loads((root / "package/emoji.json").read_text(encoding="utf-8"))
    pictures = root / "package/img/google/64"
    found: dict[str, list[Path]] = {kind: [] for kind in _EMOJI}
    for row in table:
        for kind, groups in _EMOJI.items():
            file = pictures / row["image"]
            if row["subcategory"] in groups and file.is_file():
                found[kind].append(file)
    return {kind: sorted(files) for kind, files in found.items() if len(files) >= 10}


def split_files(files: list[Path], rng: Random) -> dict[Split, list[Path]]:
    """Divide cut-outs so that each belongs to exactly one split and every split gets at least one."""
    shuffled = rng.sample(sorted(files), len(files))
    sizes = {split: max(1, round(_SHARES[split] * len(files))) for split in SPLITS if split != "server"}
    parts: dict[Split, list[Path]] = {}
    start = 0
    for split, size in sizes.items():
        parts[split] = shuffled[start : start + size]
        start += size
    parts["server"] = shuffled[start:]
    return parts


class Scenes:
    """Generator of scenes of distinct kinds of things, one per corner at most."""

    def __init__(self, files: dict[str, list[Path]], seed: int) -> None:
        """Assign the cut-outs of each kind in ``files`` to splits by ``seed``."""
        self._parts = {kind: split_files(paths, Random(f"{seed}/{kind}")) for kind, paths in files.items()}
        self._cutouts: dict[Path, Image.Image] = {}

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        """Yield ``count`` scenes made of the cut-outs of ``split``."""
        kinds = [kind for kind in ARTICLED if kind in self._parts]
        for _ in range(count):
            size = rng.choices((2, 3, 4), (0.5, 0.35, 0.15))[0]
            corners = dict(zip(rng.sample(CORNERS, size), rng.sample(kinds, size), strict=True))
            files = {corner: rng.choice(self._parts[kind][split]) for corner, kind in corners.items()}
            image = self._compose(files, rng)
            sources = frozenset(f"cutout:{path.name}" for path in files.values())
            yield AnnotatedPicture(image, sources, caption(corners), make_questions(corners, rng))

    def _compose(self, files: dict[str, Path], rng: Random) -> Image.Image:
        scene = _background(rng)
        for corner, path in files.items():
            cutout = self._cutout(path)
            if rng.random() < 0.5:
                cutout = cutout.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            cutout = cutout.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR, expand=True)
            side = round(_CELL * rng.uniform(0.8, 0.98))
            scale = side / max(cutout.size)
            cutout = cutout.resize((max(1, round(cutout.width * scale)), max(1, round(cutout.height * scale))))
            left = (_CELL if "right" in corner else 0) + rng.randint(0, _CELL - cutout.width)
            top = (_CELL if "bottom" in corner else 0) + rng.randint(0, _CELL - cutout.height)
            scene.paste(cutout, (left, top), cutout)
        return ImageEnhance.Brightness(scene).enhance(rng.uniform(0.85, 1.1))

    def _cutout(self, path: Path) -> Image.Image:
        if path not in self._cutouts:
            with warnings.catch_warnings():
                # Some of the packaged photographs exceed Pillow's limit; their checksum makes them trustworthy.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                picture = Image.open(path).convert("RGBA")
            picture = picture.crop(picture.getchannel("A").getbbox())
            picture.thumbnail((2 * _CELL, 2 * _CELL))
            self._cutouts[path] = picture
        return self._cutouts[path]


def _background(rng: Random) -> Image.Image:
    low, high = (np.array([rng.randint(170, 255) for _ in range(3)], dtype=np.float32) for _ in range(2))
    ramp = np.linspace(0, 1, PICTURE_SIZE, dtype=np.float32)[:, None, None]
    graded = np.broadcast_to(low + (high - low) * ramp, (PICTURE_SIZE, PICTURE_SIZE, 3)).astype(np.uint8)
    return Image.fromarray(graded if rng.random() < 0.5 else graded.transpose(1, 0, 2))
