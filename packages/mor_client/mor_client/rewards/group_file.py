"""Reader of groups to reward: rows of a data set with a prompt and a list of responses.

=========  =========================================================================
column     content
=========  =========================================================================
prompt     as in ``mor.prompts/1``: a text, or messages
responses  list of texts, or of assistant messages
images     optional; as in ``mor.prompts/1``
objective  optional: name, text, or blend of names; by default the call's
id         optional; by default the line, as ``line-3``
domain     optional: label of the prompt, for the clients' rules
public     optional: true where pictures and texts of the prompt are public
=========  =========================================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mor_core.datafiles.column_map import ColumnMap
from mor_core.datafiles.conversations import own_pictures
from mor_core.datafiles.picture_cells import PictureCells
from mor_core.datafiles.sources.row_files import open_rows
from mor_core.errors import DataFileError, Invalid, MorError

from mor_client.rewards.reward_groups import RewardGroup

_OPTIONAL = ("objective", "domain", "public")


def read_groups(path: Path, columns: str = "") -> Iterator[RewardGroup]:
    """Yield the groups of a file, folder or pattern. ``columns``: other names of its columns, see ``ColumnMap``.

    Raises:
        DataFileError: names the invalid line and the cure.
    """
    renaming = ColumnMap.parse(columns)
    source = open_rows(path)
    pictures = PictureCells(source.root)
    for place, row in source.rows:
        try:
            if isinstance(row, Invalid):
                raise row
            yield _group(renaming.apply(row), pictures, place.file.parent, f"line-{place.line}")
        except DataFileError:
            raise
        except MorError as error:
            raise DataFileError(place.file, place.line, str(error)) from error


def _group(row: dict[str, Any], pictures: PictureCells, folder: Path, line: str) -> RewardGroup:
    for column in ("prompt", "responses"):
        if row.get(column) is None:
            raise Invalid(f"no column {column!r}; add it, or name another by --map {column}=COLUMN")
    if not isinstance(row["responses"], list):
        raise Invalid(f"responses: got {type(row['responses']).__name__}; give a list of texts")
    shown = pictures.of_row(row.get("images") or own_pictures(row["prompt"]), folder)
    given = {name: row[name] for name in _OPTIONAL if row.get(name) is not None}
    return RewardGroup.of(
        row["prompt"],
        row["responses"],
        images=[content for _, content in shown],
        name=str(row.get("id") or line),
        **given,
    )
