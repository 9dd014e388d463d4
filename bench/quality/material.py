"""Pictures, questions and preference pairs of the experiment, written as data files of clients and server.

``folder/prefs.jsonl`` or ``prompts.jsonl`` and, for the benchmark's eyes only, ``folder/gold.jsonl`` with the exact
answer of each row in the same order.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image
from three_domains.questions import Gold, Split, preference

from quality.objectives import Style, prefer
from quality.population import Population

Judge = Callable[[Gold, Random], tuple[str, str] | None]
"""Function that draws a preferred and another answer to a question, or None if it finds no pair."""

_CONTRASTS = 0.5
"""Share of the pairs with a true and a false answer in the same style; the others are two drafts."""
SPLIT_SEED = 0
"""Seed of the division of material into splits, as in the demonstration's data."""


@dataclass(frozen=True)
class PairShare:
    """Part of a file: ``rows`` rows on some skills of one domain, from one split's material."""

    domain: str
    skills: Sequence[str]
    split: Split
    rows: int


def evenly(population: Population, split: Split, rows: int) -> list[PairShare]:
    """Make shares of ``rows`` rows of each domain, on all its skills."""
    return [PairShare(domain, skills, split, rows) for domain, skills in population.skills.items()]


@dataclass(frozen=True)
class PictureQuestion:
    image: Image.Image
    text: str
    gold: Gold


def judge_of(population: Population, style: Style | None) -> Judge:
    """Return the function that draws pairs by a style or, with None, by the taste of the domain's clients."""

    def draw(gold: Gold, rng: Random) -> tuple[str, str] | None:
        answers = population.answers[gold["domain"]]
        return prefer(style, answers, gold, rng) if style else preference(answers, gold, rng, _CONTRASTS)

    return draw


def questions(population: Population, share: PairShare, rng: Random) -> Iterator[list[PictureQuestion]]:
    """Yield questions about the skills without end, at most three of each picture."""
    for picture in population.picture_maker(share.domain, SPLIT_SEED).pictures(share.split, 1_000_000, rng):
        of_skills = [one for one in picture.questions if population.skill(one.gold) in share.skills]
        matching = list({one.text: one for one in of_skills}.values())
        if matching:
            chosen = rng.sample(matching, min(3, len(matching)))
            yield [PictureQuestion(picture.image, one.text, one.gold) for one in chosen]


def write_preferences(
    population: Population,
    folder: Path,
    shares: Sequence[PairShare],
    *,
    seed: str,
    each: int = 1,
    flipped: float = 0.0,
    style: Style | None = None,
) -> None:
    """Write ``each`` pairs per question, by a style or by the domains' tastes; a fraction ``flipped`` is reversed."""
    rng, judge = Random(seed), judge_of(population, style)

    def rows(share: PairShare) -> Iterator[tuple[PictureQuestion, dict[str, Any]]]:
        for batch in questions(population, share, rng):
            for question in batch:
                for _ in range(each):
                    pair = judge(question.gold, rng)
                    if pair is not None:
                        chosen, rejected = pair[::-1] if rng.random() < flipped else pair
                        yield question, {"chosen": chosen, "rejected": rejected}

    _write(folder, "prefs.jsonl", shares, rows, rng)


def write_prompts(population: Population, folder: Path, shares: Sequence[PairShare], *, seed: str) -> None:
    rng = Random(seed)

    def rows(share: PairShare) -> Iterator[tuple[PictureQuestion, dict[str, Any]]]:
        for batch in questions(population, share, rng):
            for question in batch[:2]:
                yield question, {}

    _write(folder, "prompts.jsonl", shares, rows, rng)


def read_gold(folder: Path) -> list[Gold]:
    """Read the exact answer of each row, with ``picture``, the name of its picture."""
    return [json.loads(line) for line in (folder / "gold.jsonl").read_text(encoding="utf-8").splitlines()]


def _write(
    folder: Path,
    name: str,
    shares: Sequence[PairShare],
    rows: Callable[[PairShare], Iterator[tuple[PictureQuestion, dict[str, Any]]]],
    rng: Random,
) -> None:
    """Write the folder atomically, unless it exists."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        made = Path(scratch) / "made"
        (made / "images").mkdir(parents=True)
        lines: list[tuple[dict[str, Any], Gold]] = []
        for share in shares:
            for _, (question, columns) in zip(range(share.rows), rows(share), strict=False):
                image = save_picture(question.image, made / "images")
                content = [{"type": "image"}, {"type": "text", "text": question.text}]
                row = {
                    "id": f"{share.domain}-{len(lines):05d}",
                    "prompt": [{"role": "user", "content": content}],
                    "images": [image],
                    "domain": share.domain,
                }
                lines.append((row | columns, question.gold | {"picture": image}))
        rng.shuffle(lines)
        for file, column in ((name, 0), ("gold.jsonl", 1)):
            text = "".join(json.dumps(line[column], ensure_ascii=False) + "\n" for line in lines)
            (made / file).write_text(text, encoding="utf-8")
        made.rename(folder)


def save_picture(image: Image.Image, folder: Path) -> str:
    """Write a picture under the name of its content; return its path beside the data file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.png"
    (folder / name).write_bytes(buffer.getvalue())
    return f"images/{name}"
