"""RLAIF-V as ``openbmb/RLAIF-V-Dataset`` is published, and data with the same columns: MMPR, SPA-VL, Orca pairs."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.errors import Invalid

_FILES = ("image_path", "image_name")
"""Columns with the name of the picture's file, of which sets with pictures inside keep a trace."""


class RlaifV(PairLayout):
    """``question`` about a picture, with ``chosen`` and ``rejected``."""

    name = "RLAIF-V, MMPR, SPA-VL, Orca pairs"
    about = "`question` is the prompt; the picture is in `image`, else the file `image_path` or `image_name`"
    needs = frozenset({"question"})
    answers = frozenset({"chosen", "rejected"})
    may: ClassVar[frozenset[str]] = PairLayout.may | set(_FILES)
    skips = frozenset({"ds_name", "origin_dataset", "origin_split", "idx", "answer", "class1", "class2", "class3"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        known = prompt_columns(row, row["question"])
        files = {row[column] for column in _FILES if isinstance(row.get(column), str)}
        if len(files) > 1 and not known["images"]:
            raise Invalid(
                "the row names pictures in 'image_path' and in 'image_name'; leave one out, as ignore=image_name"
            )
        return {**known, "images": known["images"] or next(iter(files), None)}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        return [(row["chosen"], row["rejected"])]
