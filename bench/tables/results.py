"""Stored results, and common parts of the tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def read(name: str) -> dict[str, Any] | None:
    """Read a result by its name; None if it was not measured."""
    file = RESULTS / f"{name}.json"
    return dict(json.loads(file.read_text())) if file.is_file() else None


def table(rows: list[list[str]]) -> str:
    """Format rows, the second of which aligns the columns, as Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def measured_on(result: dict[str, Any], command: str) -> str:
    """Describe when, where and by which command a result was measured."""
    machine = result["machine"]
    accelerator = f"one {machine['accelerator']} and " if machine.get("accelerator") else ""
    return (
        f"Measured {result['measured']} on {accelerator}{machine['cores']} cores of {machine['processor']} by "
        f"`{command}` at commit {result['commit']}."
    )
