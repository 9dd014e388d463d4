"""Builds the demonstration's data folder: ``python -m three_domains.build --out DIR``.

Layout (JSONL in the columns of ``mor.prompts/1`` and ``mor.prefs/1``; pictures beside them as
``images/<sha256>.png``)::

    server/prompts.jsonl  anchors.jsonl  sft.jsonl     what the server holds
    clients/<domain>/prefs.jsonl                       what one client holds, and nobody else reads
    gold/dev.jsonl  test.jsonl                         prompts with the exact answer, for ``three_domains.grade`` only
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from rich.progress import track

from three_domains.domains import ANSWERS, fetch_pictures, picture_maker
from three_domains.questions import Ask, Picture, Split, preference
from three_domains.sources import SourceError

Row = dict[str, Any]

CAPTION_REQUEST = "Describe the picture."
"""Asked in ``sft.jsonl`` only: its answers are dense and true, and align the language model with the tower."""


@dataclass(frozen=True)
class Part:
    """One file of the data folder: where it lies, which split's material it may use, what its rows hold.

    ``pictures`` is per domain; ``questions`` limits the questions asked about one picture; ``contrasts`` is the share
    of preference pairs that set true against false. Anchors have none: a gate is fitted on what the policy says.
    """

    name: str
    file: str
    split: Split
    kind: str
    pictures: int
    questions: int
    contrasts: float = 0.0


PARTS = (
    Part("sft", "server/sft.jsonl", "server", "sft", 640, 5),
    Part("prompts", "server/prompts.jsonl", "server", "prompt", 140, 3),
    Part("anchors", "server/anchors.jsonl", "anchor", "preference", 21, 1),
    Part("prefs", "clients/{domain}/prefs.jsonl", "client", "preference", 600, 3, contrasts=0.5),
    Part("dev", "gold/dev.jsonl", "dev", "gold", 100, 3),
    Part("test", "gold/test.jsonl", "test", "gold", 120, 3),
)


def build(out: Path, seed: int, workers: int = 2, shrink: int = 1) -> dict[str, int]:
    """Writes the data folder ``out`` (which must not exist) and returns the number of rows per file.

    The same ``seed`` gives the same bytes. ``shrink`` divides the number of pictures, for tests.

    Raises:
        FileExistsError: ``out`` exists.
        SourceError: a source cannot be had.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists: remove it or choose another --out")
    for line in fetch_pictures():
        print(line, file=sys.stderr)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        jobs = [(part, domain, seed, scratch, shrink) for domain in ("chart", "detail", "medical") for part in PARTS]
        files: dict[str, list[Row]] = {}
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            results = pool.map(_write_part, *zip(*jobs, strict=True))
            done = zip(jobs, results, strict=True)
            for (part, domain, *_), rows in track(done, "pictures", total=len(jobs)):
                files.setdefault(part.file.format(domain=domain), []).extend(rows)
        for file, rows in files.items():
            path = scratch / file
            # The order of domains in a file must not be an order of training.
            Random(f"{seed}/{file}").shuffle(rows)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        scratch.chmod(0o755)
        scratch.rename(out)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return {file: len(rows) for file, rows in files.items()}


def _write_part(part: Part, domain: str, seed: int, root: Path, shrink: int) -> list[Row]:
    rng = Random(f"{seed}/{domain}/{part.name}")
    images = (root / part.file.format(domain=domain)).parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    pictures = picture_maker(domain, seed).pictures(part.split, max(2, part.pictures // shrink), rng)
    rows: list[Row] = []
    for picture in pictures:
        image = _save(picture, images)
        if part.kind == "sft":
            row = {**_prompt(CAPTION_REQUEST), "completion": _said(picture.caption)}
            rows.append({"id": f"{part.name}-{domain}-{len(rows):05d}", "domain": domain, **row, "images": [image]})
        for ask in rng.sample(picture.asks, min(part.questions, len(picture.asks))):
            for row in _rows(part, domain, ask, rng):
                rows.append({"id": f"{part.name}-{domain}-{len(rows):05d}", "domain": domain, **row, "images": [image]})
    return rows


def _rows(part: Part, domain: str, ask: Ask, rng: Random) -> Iterator[Row]:
    answers = ANSWERS[domain]
    row = _prompt(ask.question)
    if part.kind == "gold":
        yield {**row, "gold": ask.gold}
    elif part.kind == "sft":
        yield {**row, "completion": _said(answers.draft(ask.gold, rng))}
    elif part.kind == "prompt":
        yield row
    else:
        pair = preference(answers, ask.gold, rng, part.contrasts)
        if pair is not None:
            yield {**row, "chosen": _said(pair[0]), "rejected": _said(pair[1])}


def _prompt(question: str) -> Row:
    return {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]}


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _save(picture: Picture, folder: Path) -> str:
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG")
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.png"
    (folder / name).write_bytes(buffer.getvalue())
    return f"images/{name}"


def main() -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--preset", choices=("default", "small"), default="default", help="both use the same data")
    parser.add_argument("--seed", type=int, default=0, help="decides splits, pictures and answers")
    arguments = parser.parse_args()
    try:
        counts = build(arguments.out, arguments.seed)
    except (SourceError, FileExistsError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for file, count in sorted(counts.items()):
        print(f"{count:6d}  {arguments.out / file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
