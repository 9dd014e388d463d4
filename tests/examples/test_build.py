"""Data folder: formats, determinism, disjoint pictures, no partial files (needs the real sources)."""

from __future__ import annotations

import hashlib
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from three_domains.build import build
from three_domains.domains import ANSWERS

pytestmark = pytest.mark.downloads

PROMPT_FILES = ("server/prompts.jsonl", "gold/dev.jsonl", "gold/test.jsonl")
PREFERENCE_FILES = ("server/anchors.jsonl", *(f"clients/{name}/prefs.jsonl" for name in ANSWERS))


def rows(folder: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / file).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    build(folder, seed=3, shrink=20)
    return folder


def test_rows_have_the_columns_and_their_pictures(data: Path) -> None:
    for file in (*PROMPT_FILES, *PREFERENCE_FILES, "server/sft.jsonl"):
        found = rows(data, file)
        assert found, file
        assert len({row["id"] for row in found}) == len(found)
        for row in found:
            assert [part["type"] for part in row["prompt"][0]["content"]] == ["image", "text"]
            picture = (data / file).parent / row["images"][0]
            assert hashlib.sha256(picture.read_bytes()).hexdigest() == picture.stem
            wanted = {"chosen", "rejected"} if file in PREFERENCE_FILES else {"gold"} if "gold" in file else set()
            wanted |= {"completion"} if "sft" in file else set()
            assert set(row) == {"id", "domain", "prompt", "images"} | wanted
            for answer in wanted - {"gold"}:
                assert row[answer][0]["role"] == "assistant"
    assert len(rows(data, "server/anchors.jsonl")) <= 64


def test_files_share_no_picture(data: Path) -> None:
    files = ("server/prompts.jsonl", *PREFERENCE_FILES, "gold/dev.jsonl", "gold/test.jsonl")
    pictures = {file: {row["images"][0] for row in rows(data, file)} for file in files}
    for one, other in combinations(files, 2):
        assert pictures[one].isdisjoint(pictures[other]), (one, other)


def test_same_seed_same_bytes(data: Path, tmp_path: Path) -> None:
    build(tmp_path / "again", seed=3, shrink=20)
    for path in sorted(path for path in data.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / "again" / path.relative_to(data)).read_bytes(), path.name


def test_existing_folder_is_refused(data: Path) -> None:
    with pytest.raises(FileExistsError, match="choose another"):
        build(data, seed=3)
