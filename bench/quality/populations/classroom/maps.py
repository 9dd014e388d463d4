"""Domain Maps: two countries marked on a map. Its clients like sentences that name the map.

Outlines and continents are those of Natural Earth (public domain), out of the last geopandas wheel that has them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import cos, radians
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageDraw
from three_domains.plots import split_series
from three_domains.questions import PICTURE_SIZE, AnnotatedPicture, Split, word_patterns

from .answers import Choice, ChoiceAnswers

_CONTINENTS = ("Africa", "Asia", "Europe", "North America", "Oceania", "South America")
_SIDES = ("north", "east", "south", "west")
_SEA, _LAND, _BORDER = (214, 230, 240), (200, 200, 190), (120, 120, 115)
_MARKS = {"red": (205, 40, 40), "blue": (40, 70, 205)}
_LEAST = 40
"""Fewest pixels of a marked country that an encoder may see."""
_CLEAR = 1.6
"""Least ratio of two areas, or of the distances along two axes, of which a question is asked."""
_TRIES = 40

ANSWERS = ChoiceAnswers(
    "maps",
    "located",
    "on this map",
    {
        "continent": word_patterns({name: name for name in _CONTINENTS}),
        "larger": word_patterns({"red": "red", "blue": "blue"}),
        "side": word_patterns({side: side for side in _SIDES}),
    },
)

Ring = list[tuple[float, float]]
"""Outline of an area as (longitude, latitude), degrees."""


@dataclass(frozen=True)
class Country:
    name: str
    continent: str
    rings: tuple[Ring, ...]

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of its largest outline."""
        ring = np.array(max(self.rings, key=len))
        longitude, latitude = (ring.min(axis=0) + ring.max(axis=0)) / 2
        return float(longitude), float(latitude)


def read_countries(root: Path) -> dict[str, Country]:
    """Read the countries of the six inhabited continents from the unpacked wheel of geopandas."""
    folder = root / "geopandas/datasets/naturalearth_lowres"
    outlines = _outlines((folder / "naturalearth_lowres.shp").read_bytes())
    rows = _attributes((folder / "naturalearth_lowres.dbf").read_bytes())
    found = [
        Country(row["name"], row["continent"], rings)
        for row, rings in zip(rows, outlines, strict=True)
        if row["continent"] in _CONTINENTS
    ]
    return {country.name: country for country in found}


class Maps:
    """Generator of maps with a red and a blue country, both of one split."""

    def __init__(self, countries: dict[str, Country], seed: int) -> None:
        self._countries = countries
        self._parts = split_series(sorted(countries), Random(f"{seed}/maps"))

    def pictures(self, split: Split, count: int, rng: Random) -> Iterator[AnnotatedPicture]:
        names = self._parts[split]
        made = 0
        for _ in range(_TRIES * count):
            red = rng.choice(names)
            near = sorted((name for name in names if name != red), key=lambda name: self._distance(red, name))
            picture = self._picture(red, rng.choice(near[:4]), rng)
            if picture is not None:
                yield picture
                made += 1
            if made == count:
                return

    def _distance(self, one: str, other: str) -> float:
        return float(np.hypot(*np.subtract(self._countries[one].centre, self._countries[other].centre)))

    def _picture(self, red: str, blue: str, rng: Random) -> AnnotatedPicture | None:
        """Draw the map, or return None if a marked country is too small on it."""
        marked = {"red": self._countries[red], "blue": self._countries[blue]}
        window = _Window.around([country.centre for country in marked.values()], rng.uniform(0.9, 1.3))
        image = Image.new("RGB", (PICTURE_SIZE, PICTURE_SIZE), _SEA)
        for country in self._countries.values():
            window.draw(image, country, _LAND)
        for colour, country in marked.items():
            window.draw(image, country, _MARKS[colour])
        pixels = np.asarray(image)
        areas = {colour: int((pixels == mark).all(axis=2).sum()) for colour, mark in _MARKS.items()}
        if min(areas.values()) < _LEAST:
            return None
        choices = [
            Choice(
                "continent",
                "On which continent is the red country?",
                marked["red"].continent,
                _CONTINENTS,
                "the red country is in {}.",
            )
        ]
        if max(areas.values()) >= _CLEAR * min(areas.values()):
            larger = max(areas, key=lambda colour: areas[colour])
            choices.append(
                Choice(
                    "larger", "Which country is larger, red or blue?", larger, ("red", "blue"), "the larger one is {}."
                )
            )
        side = window.side(marked["red"].centre, marked["blue"].centre)
        if side is not None:
            text = "On which side of the red country is the blue one?"
            choices.append(Choice("side", text, side, _SIDES, "the blue country is to the {}."))
        return AnnotatedPicture(
            image,
            frozenset({f"country:{red}", f"country:{blue}"}),
            f"a red country in {marked['red'].continent}, a blue one in {marked['blue'].continent}",
            tuple(choice.question("maps") for choice in choices),
        )


@dataclass(frozen=True)
class _Window:
    """Part of the world on a picture, in degrees; longitudes shrink by the cosine of the middle latitude."""

    longitude: float
    latitude: float
    reach: float
    """Half of its height, degrees."""

    @classmethod
    def around(cls, centres: list[tuple[float, float]], scale: float) -> _Window:
        longitude, latitude = np.mean(centres, axis=0)
        gap = float(np.abs(np.subtract(centres[0], centres[1])).max())
        return cls(float(longitude), float(latitude), scale * max(14.0, 0.75 * gap))

    def pixel(self, longitude: float, latitude: float) -> tuple[float, float]:
        scale = PICTURE_SIZE / 2 / self.reach
        shrink = cos(radians(min(75.0, abs(self.latitude))))
        return (
            PICTURE_SIZE / 2 + (longitude - self.longitude) * shrink * scale,
            PICTURE_SIZE / 2 - (latitude - self.latitude) * scale,
        )

    def draw(self, image: Image.Image, country: Country, fill: tuple[int, int, int]) -> None:
        drawing = ImageDraw.Draw(image)
        for ring in country.rings:
            points = [self.pixel(*point) for point in ring]
            xs, ys = zip(*points, strict=True)
            if max(xs) > 0 and min(xs) < PICTURE_SIZE and max(ys) > 0 and min(ys) < PICTURE_SIZE:
                drawing.polygon(points, fill=fill, outline=_BORDER)

    def side(self, one: tuple[float, float], other: tuple[float, float]) -> str | None:
        """Return the side of ``one`` on which ``other`` is, or None if it lies between two of them."""
        right, down = np.subtract(self.pixel(*other), self.pixel(*one))
        if max(abs(right), abs(down)) < _CLEAR * min(abs(right), abs(down)):
            return None
        if abs(right) > abs(down):
            return "east" if right > 0 else "west"
        return "south" if down > 0 else "north"


def _outlines(shapes: bytes) -> list[tuple[Ring, ...]]:
    """Read the polygons of an ESRI shapefile, the outer and inner rings of each record."""
    found, start = [], 100
    while start < len(shapes):
        (words,) = struct.unpack(">i", shapes[start + 4 : start + 8])
        record = shapes[start + 8 : start + 8 + 2 * words]
        parts, points = struct.unpack("<2i", record[36:44])
        firsts = [*struct.unpack(f"<{parts}i", record[44 : 44 + 4 * parts]), points]
        places = np.frombuffer(record, "<f8", 2 * points, 44 + 4 * parts).reshape(-1, 2).tolist()
        found.append(tuple([(x, y) for x, y in places[first:end]] for first, end in pairwise(firsts)))
        start += 8 + 2 * words
    return found


def _attributes(table: bytes) -> list[dict[str, str]]:
    """Read the rows of a dBASE table as text."""
    count, head, size = struct.unpack("<iHH", table[4:12])
    columns = [(table[at : at + 11].split(b"\0")[0].decode(), table[at + 16]) for at in range(32, head - 1, 32)]
    rows = []
    for row in range(count):
        at, values = head + row * size + 1, {}
        for name, width in columns:
            values[name] = table[at : at + width].decode("utf-8", "replace").strip()
            at += width
        rows.append(values)
    return rows
