"""Base of the layouts: from the rows of one published form to the columns of ``mor.prompts/1`` and ``mor.prefs/1``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal

from mor_core.datafiles.sources.row_files import RawRow, RowPlace
from mor_core.errors import Invalid

Content = Literal["prompts", "preferences"]
"""Kind of rows to read from a file."""
_SHOWN_COLUMNS = 20
"""Unknown columns that an error lists."""
_SHOWN_CHARACTERS = 100
"""Length up to which an error quotes the name of one."""
_COMPARED_PICTURES = frozenset({"jpg_0", "jpg_1", "image_0_url", "image_1_url", "best_image_uid"})
"""Columns of data that compares pictures, such as Pick-a-Pic."""
_OTHER_NAMES = {
    "prompt": ("problem", "question", "instruction", "query", "input", "text"),
    "chosen": ("chosen_response", "preferred", "response", "good"),
    "rejected": ("rejected_response", "dispreferred", "bad"),
}
"""Column -> names that published data gives it, for the advice of an error."""
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
    may: ClassVar[frozenset[str]] = frozenset({"images", "image", "id", "domain", "person", "system"})
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
        if compared := unknown & _COMPARED_PICTURES:
            raise Invalid(
                f"the row compares pictures that were made for one text (column {min(compared)!r}); MoR aligns models "
                "that write texts, so give data that compares texts"
            )
        if unknown:
            names = [name[:_SHOWN_CHARACTERS] for name in sorted(unknown)[:_SHOWN_COLUMNS]]
            listed, ignored = ", ".join(map(repr, names)), ",".join(f"ignore={name}" for name in names)
            several, it = ("s", "them") if len(names) > 1 else ("", "it")
            likely = _likely(names, row)
            example = f", as in --map {likely}" if likely else ""
            raise Invalid(
                f"unknown column{several} {listed}; {self._known()}: map {it} to one of these{example}, or leave {it} "
                f"out by --map {ignored} (for a run: prompt_columns)"
            )
        wanted = self.needs | self.answers if content == "preferences" else self.needs
        missing = wanted - row.keys()
        if missing:
            raise Invalid(f"column {min(missing)!r} is missing; {self._known()}")

    def _known(self) -> str:
        return f"the columns are {', '.join(sorted(self.columns - self.skips))}"

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


def _likely(unknown: Sequence[str], row: Mapping[str, Any]) -> str:
    """Return a map of unknown columns to those that the row lacks and that their names suggest."""
    found = {
        wanted: name
        for wanted, others in _OTHER_NAMES.items()
        if wanted not in row and (name := next(filter(unknown.__contains__, others), ""))
    }
    return ",".join(f"{wanted}={name}" for wanted, name in found.items())


def prompt_columns(row: dict[str, Any], prompt: Any) -> dict[str, Any]:
    """Return ``prompt`` with the columns that layouts share: ``system`` before it, ``images`` or ``image``, ``id``,
    ``domain`` and ``person``.

    Raises:
        Invalid: pictures are in both columns, or there are two system messages.
    """
    if row.get("system"):
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if isinstance(turns, list) and any(isinstance(turn, dict) and turn.get("role") == "system" for turn in turns):
            raise Invalid("a system message is in 'system' and in the prompt; leave one of them out, as ignore=system")
        prompt = [{"role": "system", "content": row["system"]}, *(turns if isinstance(turns, list) else [turns])]
    if row.get("image") and row.get("images"):
        raise Invalid("the row has pictures in 'image' and in 'images'; leave one of them out, as ignore=image")
    pictures = row.get("images") or row.get("image")
    labels = {name: row.get(name) for name in ("id", "domain", "person")}
    return {"prompt": prompt, "images": pictures, **labels}


def valid_row(row: RawRow, layout: Layout, content: Content) -> dict[str, Any]:
    """Return a row of a layout.

    Raises:
        Invalid: the row could not be read, or has other columns.
    """
    if isinstance(row, Invalid):
        raise row
    layout.check(row, content)
    return row
