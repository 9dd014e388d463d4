"""No picture source is in two splits; blocks of slices lie at least 10 mm apart."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image
from three_domains.plots import Plots, Quantity
from three_domains.questions import PICTURE_SIZE, SPLITS, PictureMaker
from three_domains.scenes import Scenes
from three_domains.slices import BLOCKS, GAP_MM, Slices, Volume


def scenes(folder: Path) -> Scenes:
    files: dict[str, list[Path]] = {}
    for kind in ("bird", "mammal", "flower", "food"):
        for index in range(12):
            path = folder / f"{kind}{index}.png"
            Image.new("RGBA", (40, 30), (index * 20, 80, 120, 255)).save(path)
            files.setdefault(kind, []).append(path)
    return Scenes(files, seed=5)


def slices() -> Slices:
    shape, origin = (181, 217, 181), (-90, -125, -71)
    head = np.full(shape, 90, np.uint8)
    left, right = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    left[20:80, 20:200, 20:170] = 1
    right[100:160, 20:200, 20:170] = 1
    regions = {("frontal", "left"): Volume("a", left, origin), ("frontal", "right"): Volume("a", right, origin)}
    return Slices([Volume("head", head, origin)], regions)


def plots() -> Plots:
    life = {f"country{index}": [(str(1955 + 5 * year), 40.0 + index) for year in range(11)] for index in range(30)}
    rate = {f"state{index}": [("1995", 10.0 + index / 5)] for index in range(30)}
    quantities = [
        Quantity("Life expectancy (years)", "years", 90, life),
        Quantity("Children per woman", "children", 9, {name: [(y, v / 10) for y, v in s] for name, s in life.items()}),
        Quantity("Obesity (% of adults)", "percent", 24, rate),
    ]
    return Plots(quantities, seed=5)


@pytest.mark.parametrize("domain", ["detail", "medical", "chart"])
def test_splits_share_no_source(domain: str, tmp_path: Path) -> None:
    maker: PictureMaker = {"detail": lambda: scenes(tmp_path), "medical": slices, "chart": plots}[domain]()
    used: dict[str, set[str]] = {}
    for split in SPLITS:
        pictures = list(maker.pictures(split, 40, Random(1)))
        assert len(pictures) == 40
        assert all(picture.image.size == (PICTURE_SIZE, PICTURE_SIZE) for picture in pictures)
        used[split] = set().union(*(picture.sources for picture in pictures))
    for one, other in combinations(SPLITS, 2):
        assert used[one], one
        assert used[one].isdisjoint(used[other]), (one, other)


@pytest.mark.parametrize("plane", sorted(BLOCKS))
def test_blocks_are_apart(plane: str) -> None:
    blocks = sorted(block for parts in BLOCKS[plane].values() for block in parts)
    for (_, end), (start, _) in pairwise(blocks):
        assert start - end >= GAP_MM


def test_marked_side_is_on_that_side_of_the_picture() -> None:
    for picture in slices().pictures("server", 20, Random(2)):
        gold = picture.questions[0].gold
        if gold["task"] == "plane":
            continue
        pixels = np.asarray(picture.image).astype(int)
        reddish = pixels[:, :, 0] - pixels[:, :, 2] > 40
        middle = float(np.argwhere(reddish)[:, 1].mean())
        assert (middle < PICTURE_SIZE / 2) == (gold["side"] == "left")


def test_same_seed_same_pictures(tmp_path: Path) -> None:
    for make in (lambda: scenes(tmp_path), slices, plots):
        first, second = (next(iter(make().pictures("test", 1, Random(9)))) for _ in range(2))
        assert first.image.tobytes() == second.image.tobytes()
        assert first.questions == second.questions
