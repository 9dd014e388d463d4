"""Start of a program: Ctrl-C ends it with status 130 from its first import on, without a traceback."""

from __future__ import annotations

import importlib
import os
import signal

_INTERRUPTED = 130
"""Exit status of a program that Ctrl-C ends, as of shells."""


def run_program(module: str) -> None:
    """Import a command line and run its ``app``.

    The libraries of a command take seconds to load. Nothing is begun by then, so Ctrl-C ends the process at once: an
    exception would pass through libraries, some of which catch it.
    """
    waiting = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started it ignores Ctrl-C
    if waiting:
        signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))
    app = importlib.import_module(module).app
    if waiting:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    app()
