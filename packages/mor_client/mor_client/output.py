"""Output of commands: tables for people, JSON for programs; results on stdout, messages on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mor_core import terminal
from mor_core.errors import MorError
from mor_core.printable import visible, visible_json
from mor_core.terminal import TerminalConsole
from pydantic import BaseModel, TypeAdapter
from rich.markup import escape

from mor_client.errors import ServiceError

out = TerminalConsole()
err = TerminalConsole(stderr=True)

_PROSE = ("reason", "text", "domains", "weight by domain")
"""Columns that hold sentences; all others hold what is copied: ids, names, numbers, times, addresses."""
STATE_STYLES = {
    "running": "green",
    "finished": "green",
    "active": "green",
    "ok": "green",
    "queued": "cyan",
    "probation": "cyan",
    "paused": "yellow",
    "warning": "yellow",
    "quarantined": "red",
    "failed": "red",
    "stopped": "red",
}


def print_json(value: Any) -> None:
    """Print one JSON document on one line. A terminal may show it, so control characters are escaped."""
    kind: Any = type(value) if isinstance(value, BaseModel) else Any
    sys.stdout.write(visible_json(TypeAdapter(kind).dump_json(value).decode()) + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """Print a table, or the message ``empty`` if there are no rows."""
    cells = [[cell(value) for value in row] for row in rows]
    if cells:
        terminal.print_table(out, columns, cells, _PROSE)
    else:
        err.print(empty, highlight=False)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print name and value, one per line."""
    terminal.print_fields(out, [(name, cell(value)) for name, value in fields])


@contextmanager
def waiting(subject: str) -> Iterator[None]:
    """Show that a long call is under way: on a terminal while it lasts, elsewhere as a line."""
    if err.is_terminal:
        with err.status(subject):
            yield
    else:
        err.print(f"{subject} ...", highlight=False)
        yield


def print_error(error: MorError, *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {"title": type(error).title, "detail": str(error)}
        if isinstance(error, ServiceError):
            document = {
                "service": error.service,
                "status": error.status_code,
                "title": error.title,
                "detail": error.detail,
                "cure": error.cure,
            }
        sys.stderr.write(visible_json(json.dumps({"error": document})) + "\n")
    else:
        err.print(f"[bold red]error:[/] {escape(str(error))}", markup=True, soft_wrap=True, highlight=False)


def cell(value: object) -> str:
    """Format a table cell: states in their colour, ``None`` as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = escape(visible(str(value)))  # before the console measures it
    style = STATE_STYLES.get(text)
    return f"[{style}]{text}[/]" if style else text


def format_time(at: float | None) -> str | None:
    """Format Unix time as local date and time, with the zone."""
    return None if at is None else time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def format_duration(seconds: float | None) -> str | None:
    """Format seconds as hours, minutes and seconds."""
    if seconds is None:
        return None
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_bytes(size: int | None) -> str | None:
    """Format a number of bytes with three digits, in binary units."""
    if size is None:
        return None
    amount, units = float(size), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1000 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.0f} {units[0]}" if units[0] == "bytes" else f"{amount:.3g} {units[0]}"
