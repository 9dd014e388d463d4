"""Base model for a population's own pictures: the demonstration's recipe on drafts of answers to them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import Any

from three_domains import base_vlm
from three_domains.build import CAPTION_REQUEST

from quality.material import SPLIT_SEED, save_picture
from quality.population import Population

_QUESTIONS = 5
"""Most questions of a picture."""


def make(population: Population, out: Path, pictures: int) -> None:
    """Tune a model on ``pictures`` of each domain's server split and write ``out``, unless it exists."""
    if out.exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        data = Path(scratch)
        write_drafts(population, data / "server", pictures)
        base_vlm.make_base(data, out, 0, base_vlm.PRESETS["default"])


def write_drafts(population: Population, folder: Path, pictures: int) -> None:
    """Write ``sft.jsonl``: a true caption and drafts of answers for each picture."""
    (folder / "images").mkdir(parents=True)
    rng, rows = Random("drafts"), []
    for domain in population.domains:
        for picture in population.picture_maker(domain, SPLIT_SEED).pictures("server", pictures, rng):
            image = save_picture(picture.image, folder / "images")
            rows.append(_row(CAPTION_REQUEST, picture.caption, image))
            for question in rng.sample(picture.questions, min(_QUESTIONS, len(picture.questions))):
                draft = population.answers[domain].draft(question.gold, rng)
                rows.append(_row(question.text, draft, image))
    rng.shuffle(rows)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "sft.jsonl").write_text(text, encoding="utf-8")


def _row(question: str, answer: str, image: str) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
        "completion": [{"role": "assistant", "content": answer}],
        "images": [image],
    }
