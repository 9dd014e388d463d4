"""Base of the layouts: from the rows of one published form to the columns of ``mor.prompts/1`` and ``mor.prefs/1``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from mor_core.datafiles.sources.row_files import RawRow, RowPlace
from mor_core.errors import Invalid

Content = Literal["prompts", "preferences"]
"""Kind of rows to read from a file."""
_SHOWN_COLUMNS = 20
"""Unknown columns that an error lists."""
NumberedRows = Iterable[tuple[RowPlace, RawRow]]


class Layout(ABC):
    """Columns of one published form, and what they mean."""

    name: ClassVar[str]
    about: ClassVar[str]
    """Description of the columns, for the documentation."""
    needs: ClassVar[frozenset[str]]
    """Columns by which the layout is known; each row has them."""
    answers: ClassVar[frozenset[str]] = frozenset()
    """Further columns of responses, which preferences need."""
    may: ClassVar[frozenset[str]] = frozenset({"images", "image", "id", "domain"})
    """Further columns that are read."""
    skips: ClassVar[frozenset[str]] = frozenset()
    """Columns that are published with them and not read."""

    @cached_property
    def columns(self) -> frozenset[str]:
        return self.needs | self.answers | self.may | self.skips

    def fits(self, columns: set[str]) -> bool:
        """Return whether a row with ``columns`` has this layout."""
        return self.needs <= columns

    def check(self, row: dict[str, Any], content: Content) -> None:
        """Check the names of the columns of a row, which has no nulls.

        Raises:
            Invalid: a column is unknown or missing.
        """
        unknown = row.keys() - self.columns
        if unknown:
            names = sorted(unknown)[:_SHOWN_COLUMNS]
            listed, ignored = ", ".join(map(repr, names)), ",".join(f"ignore={name}" for name in names)
            several, it = ("s", "them") if len(names) > 1 else ("", "it")
            raise Invalid(
                f"unknown column{several} {listed}; {self._known()}: map {it} to one of these, "
                f"as in --map prompt={names[0]}, or leave {it} out by --map {ignored} (for a run: prompt_columns)"
            )
        wanted = self.needs | self.answers if content == "preferences" else self.needs
        missing = wanted - row.keys()
        if missing:
            raise Invalid(f"column {min(missing)!r} is missing; {self._known()}")

    def _known(self) -> str:
        return f"the columns are {', '.join(sorted(self.columns))}"

    @abstractmethod
    def prompt(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return the columns of the prompt.

        Raises:
            Invalid: the row has none.
        """

    @abstractmethod
    def preferences(self, rows: NumberedRows) -> Iterator[tuple[RowPlace, RawRow]]:
        """Yield the preferences of rows, each with its prompt, or the errors of these. A row may give several."""

    def prompts(self, rows: NumberedRows) -> Iterator[tuple[RowPlace, RawRow]]:
        """Yield the prompts of rows, or the errors of these."""
        for place, row in rows:
            try:
                yield place, self.prompt(valid_row(row, self, "prompts"))
            except Invalid as error:
                yield place, error


class PairLayout(Layout):
    """Layout in which each row has all responses that are compared."""

    @abstractmethod
    def pairs(self, row: dict[str, Any]) -> list[tuple[Any, Any]]:
        """Return the better and the worse response of each preference of a row, none where all are equally good.

        Raises:
            Invalid: the row's responses cannot be compared.
        """

    def preferences(self, rows: NumberedRows) -> Iterator[tuple[RowPlace, RawRow]]:
        for place, row in rows:
            try:
                valid = valid_row(row, self, "preferences")
                prompt, pairs = self.prompt(valid), self.pairs(valid)
            except Invalid as error:
                yield place, error
                continue
            for preference in preference_rows(prompt, pairs):
                yield place, preference


def preference_rows(prompt: dict[str, Any], pairs: Sequence[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of (better, worse) responses to one prompt, with ``part`` where there are several."""
    for number, (chosen, rejected) in enumerate(pairs, 1):
        part = {} if len(pairs) == 1 else {"part": number}
        yield {**prompt, "chosen": chosen, "rejected": rejected, **part}


def common(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that most layouts share: pictures in ``images`` or ``image``, ``id`` and ``domain``.

    Raises:
        Invalid: pictures are in both.
    """
    if row.get("image") is not None and row.get("images") is not None:
        raise Invalid("the row has pictures in 'image' and in 'images'; leave one of them out, as ignore=image")
    pictures = row.get("images") if row.get("images") is not None else row.get("image")
    return {"images": pictures, "id": row.get("id"), "domain": row.get("domain")}


def valid_row(row: RawRow, layout: Layout, content: Content) -> dict[str, Any]:
    """Return a row of a layout.

    Raises:
        Invalid: the row could not be read, or has other columns.
    """
    if isinstance(row, Invalid):
        raise row
    layout.check(row, content)
    return row
