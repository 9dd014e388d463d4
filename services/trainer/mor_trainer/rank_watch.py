"""Watch of the ranks over each other: a frozen one, or one whose node is gone without a word, ends all the others.

Each rank has a counter in the store that the ranks share, which a thread counts up whatever the rank computes. A rank
whose counter stands still would keep the others in a collective for ever; so they end, and the launcher starts all
ranks again.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import structlog
from mor_core.failures import describe_failure

log = structlog.get_logger(__name__)

_ROUNDS = 8
"""Times at which each rank counts within the longest silence."""
_STATUS = 1
"""Exit status of a rank that waits no longer."""


@contextlib.contextmanager
def watched(
    store: Any, rank: int, size: int, longest_s: float, end: Callable[[int], object] = os._exit
) -> Iterator[None]:
    """While the body runs, count for this rank, and end the process where another one is silent for ``longest_s``.

    ``end``: called with the exit status on a thread of its own. The main thread waits for the silent rank and cannot
    be woken.
    """
    over = threading.Event()
    began = time.monotonic()
    heard = {other: began for other in range(size) if other != rank}
    """Monotonic time at which each other rank's counter was seen to move."""
    interval_s = longest_s / _ROUNDS

    def count() -> None:
        counts: dict[int, bytes] = {}
        number = 0
        try:
            while not over.wait(interval_s):
                number += 1
                store.set(_key(rank), str(number))
                for other in heard:
                    if not store.check([_key(other)]) or (found := store.get(_key(other))) == counts.get(other):
                        continue
                    counts[other], heard[other] = found, time.monotonic()
        except RuntimeError as error:  # torch's, for a store that is gone: its node ends, or the launcher does
            if not over.is_set():
                log.warning("the store of the ranks does not answer", error=describe_failure(error))

    def watch() -> None:
        while not over.wait(interval_s):
            latest = time.monotonic() - longest_s
            if silent := sorted(other for other, at in heard.items() if at < latest):
                log.error(
                    "ranks are silent; this one ends, so that the launcher starts all again",
                    silent=silent,
                    seconds=longest_s,
                    setting="MOR_RANK_TIMEOUT_S",
                )
                end(_STATUS)
                return

    threads = [threading.Thread(target=work, name=f"rank {work.__name__}", daemon=True) for work in (count, watch)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:  # a store that hangs holds its thread, not the end of the process
            thread.join(timeout=5)


def _key(rank: int) -> str:
    return f"mor/alive/{rank}"
