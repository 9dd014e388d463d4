"""RLHF-V as ``openbmb/RLHF-V-Dataset`` is published: question and responses are JSON in one column."""

from __future__ import annotations

from typing import Any, ClassVar

from mor_core.datafiles.layouts.layout import PairLayout, prompt_columns
from mor_core.datafiles.sources import strict_json
from mor_core.errors import Invalid

_FIELDS = ("question", "chosen", "rejected")
_SHOWN_CHARACTERS = 80
"""Length up to which an error quotes the name of a field."""


class RlhfV(PairLayout):
    """``text`` with question, better and worse response as JSON."""

    name = "RLHF-V"
    about = "`text` holds `{question, chosen, rejected}` as JSON; the picture is in `image`, else the file `image_path`"
    needs = frozenset({"text", "ds_name"})
    may: ClassVar[frozenset[str]] = PairLayout.may | {"image_path"}
    skips = frozenset({"origin_dataset", "origin_split", "idx"})

    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        known = prompt_columns(row, _fields(row)["question"])
        return {**known, "images": known["images"] or row.get("image_path")}

    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        fields = _fields(row)
        return [(fields["chosen"], fields["rejected"])]


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    text = row["text"]
    try:
        fields = strict_json.load(text) if isinstance(text, str) else text
    except strict_json.DuplicateName as error:
        raise Invalid(f"text: {str(error)[:_SHOWN_CHARACTERS]!r} is given twice; keep one of the two") from error
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(name), str) for name in _FIELDS):
        raise Invalid("text: not a JSON object with the strings question, chosen and rejected; write it so")
    return fields
