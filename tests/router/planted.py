"""Planted truth: three kinds of questions, and clients that each know one kind and mislead on the other two."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from mor_core.images import sha256
from PIL import Image, ImageDraw

from tests.router.endpoints import Score, noise, quality, words

KINDS = {
    "chart": "Read the chart axis: value of bar number {}",
    "medical": "Brain slice scan: which lobe or plane, region {}",
    "detail": "Photo scene: list every object and animal near {}",
}
_COLOURS = {"chart": "white", "medical": "black", "detail": "green"}


def specialist(kind: str, scale: float = 1.0, shift: float = 0.0, salt: str = "") -> Score:
    """Make a client that ranks its own kind well and the others in reverse; ``salt`` makes its errors independent."""

    def score(item: dict[str, Any], response: str) -> float:
        known = KINDS[kind].split(":")[0] in words(item)
        value = quality(response) + 1.5 * noise(kind + salt, words(item), response)
        return scale * (value if known else -0.7 * value) + shift

    return score


def picture(kind: str, index: int) -> bytes:
    image = Image.new("RGB", (48, 48), _COLOURS[kind])
    draw = ImageDraw.Draw(image)
    draw.rectangle((4, 4, 8 + index % 30, 20), fill="red")
    # Each question has a picture of its own, as in a long run, and those of a kind look nearly alike.
    draw.point((index // 30 % 48, 44), fill="blue")
    draw.point((index // 1440 % 48, 46), fill="yellow")
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def question(kind: str, index: int) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the messages of a question with a picture, and the picture in base64 by hash."""
    content = picture(kind, index)
    digest = sha256(content)
    parts = [
        {"type": "image_url", "image_url": {"url": f"sha256:{digest}"}},
        {"type": "text", "text": KINDS[kind].format(index)},
    ]
    return [{"role": "user", "content": parts}], {digest: base64.b64encode(content).decode()}


def rows(count: int, *, images: bool = True, seed: int = 11, start: int = 0) -> list[dict[str, Any]]:
    """Make preference rows in the columns of ``mor.prefs/1``, on the questions from number ``start`` on.

    The number in a response is its true quality.
    """
    random = np.random.default_rng(seed)
    kinds = list(KINDS)
    made = []
    for index in range(start, start + count):
        kind = kinds[index % 3]
        better, worse = sorted(random.normal(0, 1.2, size=2).round(3).tolist(), reverse=True)
        better += 0.001 * (better == worse)
        row = {
            "id": f"a{index}",
            "prompt": KINDS[kind].format(index),
            "chosen": f"answer {round(better, 3)}",
            "rejected": f"answer {worse}",
            "domain": kind,
        }
        if images:
            row["images"] = ["data:image/png;base64," + base64.b64encode(picture(kind, index)).decode()]
        made.append(row)
    return made


def jsonl(made: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in made).encode()
