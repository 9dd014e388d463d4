"""Measurement of the index of a large prompt set: ``python bench/prompt_index.py --rows 1000000``.

Each row names a picture file of its own. The files are hard links to 20,000 different JPEGs, because a file
system has a million names sooner than a million pictures; each is opened, read and hashed all the same. Every figure is
of a process of its own. The reader of the whole file is measured on a part of the rows.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy
from machine import record
from mor_core.datafiles import read_prompts
from mor_core.prompt_index import open_prompts
from PIL import Image

_NAMES_A_FOLDER = 10_000
_READS = 20_000
"""Prompts that are read at random."""


def make(folder: Path, rows: int, pictures: int, side: int) -> Path:
    """Write a data set of ``rows`` rows with pictures of ``side`` x ``side`` pixels."""
    noise = numpy.random.default_rng(0)
    (folder / "distinct").mkdir()
    for picture in range(pictures):
        content = io.BytesIO()
        low = noise.integers(0, 256, (side // 8, side // 8, 3), dtype=numpy.uint8)
        Image.fromarray(low).resize((side, side)).save(content, "JPEG", quality=90)
        (folder / "distinct" / f"{picture}.jpg").write_bytes(content.getvalue())
    path = folder / "rows.jsonl"
    with path.open("w") as lines:
        for row in range(rows):
            name = f"{row // _NAMES_A_FOLDER:04d}/{row}.jpg"
            if row % _NAMES_A_FOLDER == 0:
                (folder / name).parent.mkdir()
            os.link(folder / "distinct" / f"{row % pictures}.jpg", folder / name)
            question = f"How many shapes of this picture are like the one in row {row}, and where are they?"
            lines.write(
                json.dumps({"id": f"row-{row}", "prompt": question, "images": [name], "domain": "shapes"}) + "\n"
            )
    return path


def part_of(path: Path, rows: int) -> Path:
    """Write the first rows of a data set as another one."""
    part = path.with_name("part.jsonl")
    with path.open() as lines:
        part.write_text("".join(next(lines) for _ in range(rows)))
    return part


def build(path: Path) -> dict[str, Any]:
    """Index a data set."""
    begun, cpu = time.perf_counter(), time.process_time()
    prompts = open_prompts(path, index_dir=path.parent / "index")
    found = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    size = sum(file.stat().st_size for file in prompts.folder.iterdir())
    return found | _memory() | {"rows": len(prompts), "index_mb": round(size / 1e6, 1)}


def use(path: Path) -> dict[str, Any]:
    """Open an index that was built, read all ids, and read prompts at random."""
    begun = time.perf_counter()
    prompts = open_prompts(path, index_dir=path.parent / "index")
    opened = time.perf_counter() - begun
    begun = time.perf_counter()
    ids = sum(1 for _ in prompts.ids)
    read = time.perf_counter() - begun
    chosen = random.Random(0).choices(range(ids), k=_READS)
    begun, cpu = time.perf_counter(), time.process_time()
    for row in chosen:
        prompts[row]
    seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    return {
        "open_seconds": round(opened, 2),
        "all_ids_seconds": round(read, 2),
        "random_reads": _READS,
        "reads_per_second": round(_READS / seconds),
        "reads_per_cpu_second": round(_READS / cpu),
        **_memory(),
    }


def read_whole(path: Path) -> dict[str, Any]:
    """Read a data set into memory."""
    begun, cpu = time.perf_counter(), time.process_time()
    prompts = read_prompts(path)
    found = {"seconds": round(time.perf_counter() - begun, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    return found | _memory() | {"rows": len(prompts)}


def _memory() -> dict[str, float]:
    """Return the most memory that this process had, and what of today's no other process can share, in MB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    private = [line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if line.startswith("Private_")]
    kilobytes = sum(int(line.split()[1]) for line in private)
    return {
        "peak_mb": round(int(status["VmHWM"].split()[0]) * 1024 / 1e6, 1),
        "private_mb": round(kilobytes * 1024 / 1e6, 1),
    }


def apart(work: Callable[[Path], dict[str, Any]], path: Path) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(work, path).result()
    print(work.__name__, path.name, found, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part", type=int, default=20_000, help="rows for the reader of the whole file")
    parser.add_argument("--pictures", type=int, default=20_000, help="different pictures")
    parser.add_argument("--side", type=int, default=224)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder), options.rows, options.pictures, options.side)
        part = part_of(path, options.part)
        size = sum(file.stat().st_size for file in (path.parent / "distinct").iterdir()) / options.pictures
        figures = {
            "data": {**vars(options), "mean_picture_bytes": round(size)},
            "index_of_all_rows": {"build": apart(build, path), "use": apart(use, path)},
            "index_of_part": {"build": apart(build, part), "use": apart(use, part)},
            "read_prompts_of_part": apart(read_whole, part),
        }
    print(record("prompt-index", figures))


if __name__ == "__main__":
    main()
