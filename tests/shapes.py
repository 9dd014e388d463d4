"""Questions of easy-vqa about drawn shapes, as rows of a prompts file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import easy_vqa


def copy_questions(folder: Path, count: int) -> list[dict[str, Any]]:
    """Return the first ``count`` questions and copy their pictures to ``folder``."""
    texts, _, pictures = easy_vqa.get_train_questions()
    paths = easy_vqa.get_train_image_paths()
    rows = []
    for index in range(count):
        picture = Path(paths[pictures[index]])
        shutil.copy(picture, folder)
        rows.append({"id": f"q{index}", "domain": "shapes", "prompt": texts[index], "images": [picture.name]})
    return rows


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write a JSON line for each row."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
