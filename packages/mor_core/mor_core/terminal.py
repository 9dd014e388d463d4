"""Console and tables of the commands: what is printed holds no control character but rich's own (extra ``terminal``).

A table is one line a row, with whole cells, as ``kubectl`` prints it, so that a script can cut it and an id can be
copied. Only on a terminal that is too narrow are the columns of prose folded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from mor_core.printable import visible_lines

_GAP = 2
"""Spaces between columns."""
_NARROWEST = 12
"""Characters of a folded column, at least; below, lines of one word each are worse than long lines."""


class TerminalConsole(Console):
    """rich's console, which shows control characters of any text as escapes.

    Everything that rich prints passes through ``render`` as segments: tables, progress bars, messages. Its own control
    sequences are segments of another kind. Text stays as it is: ``hub:x:CONFIG`` becomes no picture, and ``[/tmp]`` is
    no style, except where a caller prints with ``markup=True`` and escapes what others wrote. Lines are folded on a
    terminal only: in a file or a pipe each message is one line, so that a path in it can be copied and found.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(emoji=False, markup=False, **given)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **given: Any) -> None:
        super().print(*objects, soft_wrap=not self.is_terminal if soft_wrap is None else soft_wrap, **given)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(visible_lines(text), style)


def print_table(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], prose: Iterable[str] = ()
) -> None:
    """Print a table. Cells are rich's markup; ``prose`` names the columns that may be folded on a terminal."""
    lines = [
        [Text(name, style="bold") for name in columns],
        *([Text.from_markup(cell, emoji=False) for cell in row] for row in rows),
    ]
    widths = [max(line[place].cell_len for line in lines) for place in range(len(columns))]
    folded = [place for place, name in enumerate(columns) if name in set(prose)]
    whole = sum(width for place, width in enumerate(widths) if place not in folded) + _GAP * (len(columns) - 1)
    too_wide = sum(widths) + _GAP * (len(columns) - 1) > console.width
    if console.is_terminal and too_wide and folded and console.width - whole >= _NARROWEST * len(folded):
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for place, name in enumerate(columns):
            table.add_column(name, overflow="fold", no_wrap=place not in folded)
        for line in lines[1:]:
            table.add_row(*line)
        console.print(table)
        return
    for line in lines:
        for cell, width in zip(line[:-1], widths, strict=False):
            cell.pad_right(width + _GAP - cell.cell_len)
        console.print(Text.assemble(*line), soft_wrap=True, highlight=False)


def print_fields(console: Console, fields: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one per line. Values are rich's markup."""
    shown = [(name, Text.from_markup(value, emoji=False)) for name, value in fields]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        padded = Text(name.ljust(width + _GAP), style="bold")
        console.print(Text.assemble(padded, value), soft_wrap=True, highlight=False)
