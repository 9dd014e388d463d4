"""Builder of the demonstration's data folder: ``python -m three_domains.build --out DIR``.

Layout (JSONL in the columns of ``mor.prompts/1`` and ``mor.prefs/1``; pictures beside them as
``images/<sha256>.png``)::

    server/prompts.jsonl  anchors.jsonl  sft.jsonl     data of the server
    clients/<domain>/prefs.jsonl                       data of one client, which only it reads
    gold/dev.jsonl  test.jsonl                         prompts with the exact answer, for ``three_domains.grade`` only
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

from mor_core import atomic

from three_domains.domains import ANSWERS, fetch_pictures, picture_maker
from three_domains.questions import AnnotatedPicture, Question, Split, preference
from three_domains.sources import SourceError
from three_domains.stage_progress import advancing

Row = dict[str, Any]

CAPTION_REQUEST = "Describe the picture."
"""Prompt in ``sft.jsonl`` only; its dense, true answers align the language model with the image encoder."""


@dataclass(frozen=True)
class FileSpec:
    """One file of the data folder: its path, the split whose material it may use, the content of its rows.

    ``pictures`` is per domain; ``questions`` limits the questions about one picture; ``contrasts`` is the fraction of
    preference pairs with a true and a false answer. Anchors have none: a gate is fitted on responses of the policy.
    """

    name: str
    path: str
    split: Split
    kind: str
    pictures: int
    questions: int
    contrasts: float = 0.0


FILES = (
    FileSpec("sft", "server/sft.jsonl", "server", "sft", 640, 5),
    FileSpec("prompts", "server/prompts.jsonl", "server", "prompt", 140, 3),
    FileSpec("anchors", "server/anchors.jsonl", "anchor", "preference", 21, 1),
    FileSpec("prefs", "clients/{domain}/prefs.jsonl", "client", "preference", 600, 3, contrasts=0.5),
    FileSpec("dev", "gold/dev.jsonl", "dev", "gold", 100, 3),
    FileSpec("test", "gold/test.jsonl", "test", "gold", 120, 3),
)


def build(out: Path, seed: int, workers: int = 2, shrink: int = 1) -> dict[str, int]:
    """Write the data folder ``out`` (which must not exist) and return the number of rows per file.

    The same ``seed`` gives the same bytes. ``shrink`` divides the number of pictures, for tests.

    Raises:
        FileExistsError: ``out`` exists.
        SourceError: a source is not available.
    """
    return write_files(out, FILES, ("chart", "detail", "medical"), seed, workers=workers, shrink=shrink)


def write_files(
    out: Path, specs: Sequence[FileSpec], domains: Sequence[str], seed: int, *, workers: int = 2, shrink: int = 1
) -> dict[str, int]:
    """Write the files of ``specs`` for ``domains`` as ``build`` does."""
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    for line in fetch_pictures():
        print(line, file=sys.stderr)
    with atomic.folder(out, replace=False, durable=False) as scratch:
        jobs = [(spec, domain, seed, scratch, shrink) for domain in domains for spec in specs]
        files: dict[str, list[Row]] = {}
        # An interrupt ends the workers, which would else begin with the jobs that wait.
        spawn, default = get_context("spawn"), (signal.SIGINT, signal.SIG_DFL)
        with ProcessPoolExecutor(workers, mp_context=spawn, initializer=signal.signal, initargs=default) as pool:
            results = pool.map(_write_file, *zip(*jobs, strict=True))
            done = zip(jobs, results, strict=True)
            for (spec, domain, *_), rows in advancing(done, "pictures", len(jobs)):
                files.setdefault(spec.path.format(domain=domain), []).extend(rows)
        for file, rows in files.items():
            path = scratch / file
            # Shuffled, so that training does not see the domains one after the other.
            Random(f"{seed}/{file}").shuffle(rows)
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {file: len(rows) for file, rows in files.items()}


def _write_file(spec: FileSpec, domain: str, seed: int, root: Path, shrink: int) -> list[Row]:
    rng = Random(f"{seed}/{domain}/{spec.name}")
    images = (root / spec.path.format(domain=domain)).parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    pictures = picture_maker(domain, seed).pictures(spec.split, max(2, spec.pictures // shrink), rng)
    rows: list[Row] = []
    for picture in pictures:
        image = _save(picture, images)
        if spec.kind == "sft":
            row = {**_prompt(CAPTION_REQUEST), "completion": _assistant(picture.caption)}
            rows.append({"id": f"{spec.name}-{domain}-{len(rows):05d}", "domain": domain, **row, "images": [image]})
        for question in rng.sample(picture.questions, min(spec.questions, len(picture.questions))):
            for row in _rows(spec, domain, question, rng):
                rows.append({"id": f"{spec.name}-{domain}-{len(rows):05d}", "domain": domain, **row, "images": [image]})
    return rows


def _rows(spec: FileSpec, domain: str, question: Question, rng: Random) -> Iterator[Row]:
    answers = ANSWERS[domain]
    row = _prompt(question.text)
    if spec.kind == "gold":
        yield {**row, "gold": question.gold}
    elif spec.kind == "sft":
        yield {**row, "completion": _assistant(answers.draft(question.gold, rng))}
    elif spec.kind == "prompt":
        yield row
    else:
        pair = preference(answers, question.gold, rng, spec.contrasts)
        if pair is not None:
            yield {**row, "chosen": _assistant(pair[0]), "rejected": _assistant(pair[1])}


def _prompt(question: str) -> Row:
    return {"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]}


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _save(picture: AnnotatedPicture, folder: Path) -> str:
    buffer = io.BytesIO()
    picture.image.save(buffer, "PNG")
    name = f"{hashlib.sha256(buffer.getvalue()).hexdigest()}.png"
    (folder / name).write_bytes(buffer.getvalue())
    return f"images/{name}"


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must not exist")
    parser.add_argument("--preset", choices=("default", "small"), default="default", help="both use the same data")
    parser.add_argument("--seed", type=int, default=0, help="seed of splits, pictures and answers")
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
