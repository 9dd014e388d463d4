"""Other names of the columns of a data file, as ``prompt=question,images=image,ignore=source``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mor_core.errors import Invalid

_IGNORE = "ignore"


@dataclass(frozen=True)
class ColumnMap:
    """Names of columns in a file, by the names that a layout reads."""

    renamed: Mapping[str, str]
    """Name in the file -> name that the layout reads."""
    ignored: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> ColumnMap:
        """Parse pairs ``wanted=column`` separated by commas; ``ignore=column`` may repeat.

        Raises:
            Invalid: a pair has no ``=``, or a name occurs twice.
        """
        renamed: dict[str, str] = {}
        ignored: set[str] = set()
        for pair in filter(None, (part.strip() for part in text.split(","))):
            wanted, equals, column = (part.strip() for part in pair.partition("="))
            if not (wanted and equals and column):
                raise Invalid(f"map: got {pair[:60]!r}; write wanted=column, as in prompt=question,images=image")
            if column in renamed or column in ignored or wanted in renamed.values():
                raise Invalid(f"map: {pair[:60]!r} gives a name for the second time; give each name once")
            if wanted == _IGNORE:
                ignored.add(column)
            else:
                renamed[column] = wanted
        return cls(renamed, frozenset(ignored))

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row under the names that a layout reads.

        Raises:
            Invalid: the row has both a column that is renamed and one of its new name.
        """
        if not self.renamed and not self.ignored:
            return dict(row)
        result: dict[str, Any] = {}
        for column, value in row.items():
            if column in self.ignored:
                continue
            name = self.renamed.get(column, column)
            if name in result:
                raise Invalid(f"map: the row has two columns for {name!r}; ignore one, as in ignore={name}")
            result[name] = value
        return result
