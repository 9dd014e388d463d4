"""Ctrl-C and SIGTERM during a training: it stops after its step, with a checkpoint."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from mor_core.errors import MorError
from mor_core.printable import visible

from mor_reward.console import err


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Stop training after its step on a first SIGINT or SIGTERM, so that it can resume; end it at once on a second.

    The command then ends with the status of that signal, 130 for Ctrl-C.
    """
    requested = 0

    def request(number: int, _: object) -> None:
        nonlocal requested
        if requested:
            raise KeyboardInterrupt
        requested = number

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(requested)
    except MorError as error:
        if not requested:
            raise
        err.print(visible(str(error)), soft_wrap=True, highlight=False)
        raise typer.Exit(128 + requested) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
