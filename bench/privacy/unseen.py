"""Pairs of a demonstration's clients about pictures that no training has seen: non-members for membership attacks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from mor_core import atomic
from three_domains.build import FILES, write_files
from three_domains.stack import CLIENTS


def pairs(state: Path, client: str, seed: int) -> Path:
    """Return the file of further pairs of ``client``, drawn as its training data; write those of all clients first."""
    out = state / "unseen"
    if not out.exists():
        (trained_on,) = (spec for spec in FILES if spec.name == "prefs")
        drawn = dataclasses.replace(trained_on, name="unseen", path="{domain}/prefs.jsonl")
        write_files(out, (drawn,), sorted(CLIENTS), seed)
    return _without_known(out / client / "prefs.jsonl", state / "data" / "clients" / client / "images")


def _without_known(file: Path, known: Path) -> Path:
    """Leave out the rows whose pictures are in the folder ``known``: few domains have endless pictures."""
    rows = file.read_text(encoding="utf-8").splitlines(keepends=True)
    new = [row for row in rows if not any((known / Path(image).name).exists() for image in json.loads(row)["images"])]
    if len(new) < len(rows):
        atomic.write(file, "".join(new).encode())
    return file
