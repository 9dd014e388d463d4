"""Prompts of a file without the rows that its check has found bad."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import overload

from mor_core.datafiles import Prompt


class UsablePrompts(Sequence[Prompt]):
    """Prompts that a run draws, in the order of the file. It holds no row, only the places of those left out."""

    def __init__(self, readable: Sequence[Prompt], left_out: Iterable[int]) -> None:
        """``readable``: all rows that can be read. ``left_out``: places in it, from 0, of those not to be drawn."""
        self._readable = readable
        skipped = sorted(set(left_out))
        self._shifts = [place - index for index, place in enumerate(skipped)]
        """For each row left out: the number of usable rows before it, in ascending order."""

    def __len__(self) -> int:
        return len(self._readable) - len(self._shifts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"prompt {index} of {len(self)}")
        return self._readable[place + bisect_right(self._shifts, place)]
