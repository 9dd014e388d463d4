"""A rank whose counter stands still ends the others, and nothing else does."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from mor_trainer.rank_watch import watched
from torch.distributed import HashStore

LONGEST_S = 0.8


def until(holds: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_silent_rank_ends_the_others() -> None:
    store, ended = HashStore(), []
    with ExitStack() as ranks:
        with watched(store, 2, 3, LONGEST_S, lambda status: ended.append((2, status))):
            for rank in (0, 1):
                ranks.enter_context(
                    watched(store, rank, 3, LONGEST_S, lambda status, rank=rank: ended.append((rank, status)))
                )
            until(lambda: all(store.check([f"mor/alive/{rank}"]) for rank in range(3)))
        until(lambda: {(0, 1), (1, 1)} <= set(ended))


def test_a_rank_that_never_counts_ends_the_others() -> None:
    ended: list[int] = []
    with watched(HashStore(), 0, 2, LONGEST_S, ended.append):
        until(lambda: ended == [1])


def test_ranks_that_count_end_nothing() -> None:
    store, ended = HashStore(), []
    longest_s = 20.0  # a busy machine is silent for a while
    with watched(store, 0, 2, longest_s, ended.append), watched(store, 1, 2, longest_s, ended.append):
        until(lambda: all(store.check([f"mor/alive/{rank}"]) for rank in range(2)))
    assert ended == []


def test_a_store_that_is_gone_is_silence() -> None:
    class Gone:
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("Broken pipe")

    ended: list[int] = []
    with watched(Gone(), 0, 2, LONGEST_S, ended.append):
        until(lambda: ended == [1])
