"""Write the files of a first run from the pictures of easy-vqa, one shape in one colour each: ``prepare.py DIR``.

Two organisations know different things: ``shapes`` prefers answers that name the right shape, ``colours`` those that
name the right colour. Their preferences, the server's prompts and the questions of the test have different pictures.
Replace this script by one that writes the same files from data of your own.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import easy_vqa

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
HEDGES = {"shapes": "it could be any shape", "colours": "it could be any colour"}
VAGUE = ("something", "hard to say")

Row = dict[str, Any]


def pictures() -> Iterator[tuple[Path, dict[str, str], list[tuple[str, str]]]]:
    """Yield each training picture with its shape and colour, and its questions with their domains."""
    asked: dict[int, list[tuple[str, str]]] = {}
    truth: dict[int, dict[str, str]] = {}
    for question, answer, picture in zip(*easy_vqa.get_train_questions(), strict=True):
        domain = {**dict.fromkeys(SHAPES, "shapes"), **dict.fromkeys(COLOURS, "colours")}.get(answer)
        if domain is not None:  # not yes or no
            asked.setdefault(picture, []).append((question, domain))
            truth.setdefault(picture, {})[domain] = answer
    for picture, path in easy_vqa.get_train_image_paths().items():
        if picture in truth:
            yield Path(path), truth[picture], asked[picture]


def wrong(domain: str, right: str, random: Random) -> str:
    """Return a false answer."""
    return random.choice([other for other in (SHAPES if domain == "shapes" else COLOURS) if other != right])


def draft(domain: str, right: str, random: Random) -> str:
    """Return an answer as the model gives it before it is aligned: more often evasive than right."""
    return random.choices(
        (right, wrong(domain, right, random), HEDGES[domain], random.choice(VAGUE)), weights=(25, 15, 35, 25)
    )[0]


def preference(domain: str, right: str, random: Random) -> Row:
    """Return a preference; the rejected answers include all that the model says."""
    bad = (wrong(domain, right, random), HEDGES[domain], *VAGUE, f"{right} {wrong(domain, right, random)}", "")
    rejected = random.choices(bad, weights=(5, 2, 1, 1, 2, 1))[0] or f"{right} {right}"
    return {"chosen": right, "rejected": rejected}


def main(folder: Path) -> None:
    random = Random(0)
    rows: dict[str, list[Row]] = {}
    found = list(pictures())
    random.shuffle(found)
    parts = {"server/sft": 1000, "server/prompts": 400, "server/anchors": 60, "clients": 900, "server/evaluation": 30}
    parts["test"] = 150
    for part, number in parts.items():
        for path, truth, questions in [found.pop() for _ in range(number)]:
            for question, domain in random.sample(questions, min(2, len(questions))):
                file = f"clients/{domain}/preferences" if part == "clients" else part
                base = folder / file
                image = base.parent / "images" / path.name
                image.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, image)
                content = [{"type": "image"}, {"type": "text", "text": question}]
                row: Row = {"id": f"{path.stem}-{len(rows.setdefault(file, []))}", "domain": domain}
                row |= {"prompt": [{"role": "user", "content": content}], "images": [f"images/{path.name}"]}
                right = truth[domain]
                if part == "server/sft":
                    row["completion"] = [{"role": "assistant", "content": draft(domain, right, random)}]
                elif part in {"server/anchors", "clients"}:
                    row |= preference(domain, right, random)
                elif part == "test":
                    row["answer"] = right
                rows[file].append(row)
            if part == "server/sft":
                content = [{"type": "image"}, {"type": "text", "text": "describe the picture"}]
                caption = f"{truth.get('colours', '')} {truth.get('shapes', 'shape')}".strip()
                rows[part].append(
                    {"id": f"{path.stem}-caption", "images": [f"images/{path.name}"]}
                    | {"prompt": [{"role": "user", "content": content}]}
                    | {"completion": [{"role": "assistant", "content": caption}]}
                )
    for file, written in rows.items():
        text = "".join(json.dumps(row) + "\n" for row in written)
        (folder / f"{file}.jsonl").write_text(text, encoding="utf-8")
        print(f"{folder / file}.jsonl: {len(written)} rows")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
