"""Last resort of a command: an exception that nobody catches is printed without data, secrets, control characters."""

from __future__ import annotations

import sys
from types import TracebackType

from mor_core.failures import format_traceback
from mor_core.hidden_secrets import hide_secrets
from mor_core.printable import visible_lines


def guard_uncaught() -> None:
    """Print uncaught exceptions with types and places only; each command calls it before it does anything else.

    Python's own way prints the message, which may quote a prompt, and typer's also colours it on a terminal.
    """

    def hook(_: type[BaseException], error: BaseException, __: TracebackType | None) -> None:
        sys.stderr.write(visible_lines(hide_secrets(format_traceback(error))) + "\n")

    sys.excepthook = hook
