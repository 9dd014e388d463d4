"""Console of the commands: what it prints holds no control character but its own (extra ``terminal``)."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from mor_core.printable import visible_lines


class TerminalConsole(Console):
    """rich's console, which shows control characters of any text as escapes.

    Everything that rich prints passes through ``render`` as segments: tables, progress bars, messages. Its own control
    sequences are segments of another kind.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control or text.isprintable() else Segment(visible_lines(text), style)
