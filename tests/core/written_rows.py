"""Rows of data files, as tests write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mor_core.datafiles import read_prompts


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def texts(path: Path, columns: str = "") -> list[str]:
    return [row.messages[0].text for row in read_prompts(path, columns)]
