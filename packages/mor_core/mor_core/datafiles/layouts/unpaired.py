"""TRL's unpaired preferences: responses that are good or bad, each in a row of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import Layout, NumberedRows, preference_rows, prompt_columns, valid_row
from mor_core.datafiles.layouts.rating import check_number
from mor_core.datafiles.sources.row_files import RawRow, RowPlace
from mor_core.errors import Invalid
from mor_core.images import sha256


class Unpaired(Layout):
    """``completion`` with a ``label``; good and bad ones of one prompt make pairs."""

    name = "TRL, unpaired"
    about = (
        "`completion` with `label` true or false; a preference for every good and bad completion of one prompt with "
        "the same pictures, at the place of the later one"
    )
    needs = frozenset({"prompt", "completion", "label"})
    may: ClassVar[frozenset[str]] = Layout.may

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        return prompt_columns(row, row["prompt"])

    def preferences(self, rows: NumberedRows) -> Iterator[tuple[RowPlace, RawRow]]:
        responses: dict[str, tuple[list[Any], list[Any]]] = {}
        for place, row in rows:
            try:
                valid = valid_row(row, self, "preferences")
                prompt, liked = self.prompt(valid), _label(valid["label"])
                bad, good = responses.setdefault(prompt_key(prompt), ([], []))
                check_number(len(bad) + len(good) + 1)
            except Invalid as error:
                yield place, error
                continue
            response = valid["completion"]
            pairs = [(response, one) for one in bad] if liked else [(one, response) for one in good]
            (good if liked else bad).append(response)
            for preference in preference_rows(prompt, pairs):
                yield place, preference


def _label(cell: Any) -> bool:
    if cell is True or cell is False or (type(cell) is int and cell in (0, 1)):
        return bool(cell)
    raise Invalid(f"label: got {str(cell)[:40]!r}; give true for a good completion, false for a bad one")


def prompt_key(prompt: dict[str, Any]) -> str:
    """Return a text that is equal for equal prompts and pictures."""
    cells = prompt["images"] if isinstance(prompt["images"], list) else [prompt["images"]]
    pictures = [cell.get("bytes") or cell if isinstance(cell, dict) else cell for cell in cells]
    return sha256(repr((prompt["prompt"], pictures)).encode(errors="replace"))
