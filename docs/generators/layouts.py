"""Table of layouts in docs/data-files.md, generated from ``mor_core.datafiles.layouts``."""

from __future__ import annotations

from collections.abc import Iterable

from mor_core.datafiles.layouts import LAYOUTS


def table() -> str:
    """Return columns and reading of every layout as a Markdown table, in the order in which they are tried."""
    rows = (
        f"| {layout.name} | {_names(layout.needs | layout.answers)} | {layout.about} | {_names(layout.skips)} |\n"
        for layout in LAYOUTS
    )
    return "| layout | columns | what is read | columns that are skipped |\n|---|---|---|---|\n" + "".join(rows)


def _names(columns: Iterable[str]) -> str:
    return ", ".join(f"`{column}`" for column in sorted(columns))
