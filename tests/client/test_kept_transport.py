"""Connections for rewards that stay open between blocking calls, on a real router."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Iterator
from threading import enumerate as threads
from types import FrameType
from unittest.mock import patch

import httpx
import pytest
from mor_client import Mor
from mor_client.errors import ServiceError
from mor_client.rewards import RewardGroup

from tests.client.installation import Installation
from tests.router.endpoints import Endpoint

GROUP = RewardGroup.of("What?", ["a 1", "b 2"])


def loops() -> int:
    return sum(thread.name == "mor-rewards" for thread in threads())


@pytest.fixture
def transports() -> Iterator[list[httpx.AsyncHTTPTransport]]:
    """Yield the transports that are made, each with connections of its own."""
    made: list[httpx.AsyncHTTPTransport] = []
    make = httpx.AsyncHTTPTransport.__init__

    def note(self: httpx.AsyncHTTPTransport, *arguments: object, **options: object) -> None:
        made.append(self)
        make(self, *arguments, **options)  # type: ignore[arg-type]

    with patch.object(httpx.AsyncHTTPTransport, "__init__", note):
        yield made


def test_calls_share_their_connections(
    scorer: Mor, clinic: Endpoint, transports: list[httpx.AsyncHTTPTransport]
) -> None:
    for _ in range(3):
        scorer.rewards.score([GROUP])
    assert len(transports) == 1
    scorer.close()
    assert loops() == 0
    assert scorer.rewards.score([GROUP])[0].status == "ok", "a closed one opens again"


def test_a_replaced_token_is_used_at_once(scorer: Mor, mor: Installation, clinic: Endpoint) -> None:
    scorer.rewards.score([GROUP])
    file = scorer.settings.token_file
    assert file is not None
    file.write_text("mor_" + "x" * 43)
    with pytest.raises(ServiceError, match="token"):
        scorer.rewards.score([GROUP])
    mor.use("scorer")
    assert scorer.rewards.score([GROUP])[0].status == "ok"


def test_a_forked_process_opens_its_own(scorer: Mor, clinic: Endpoint) -> None:
    """Trainers fork workers; only the thread that forks goes on in them."""
    scorer.rewards.score([GROUP])
    child = os.fork()
    if child == 0:
        try:
            scored = scorer.rewards.score([GROUP])[0].status == "ok"
            scorer.close()
            os._exit(0 if scored else 1)
        except BaseException:
            os._exit(2)
    end = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert ended == (child, 0)
    assert scorer.rewards.score([GROUP])[0].status == "ok"


def test_an_interruption_ends_the_call(scorer: Mor, clinic: Endpoint) -> None:
    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    clinic.delay_s = 20
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    begun = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            scorer.rewards.score([GROUP])
    finally:
        signal.signal(signal.SIGALRM, before)
        clinic.delay_s = 0
    assert time.monotonic() - begun < 10
    scorer.close()
    assert loops() == 0


def test_the_thread_of_a_forgotten_one_ends(scorer: Mor, clinic: Endpoint) -> None:
    forgotten = Mor(scorer.settings)
    forgotten.rewards.score([GROUP])
    assert loops() == 1
    del forgotten
    gc.collect()
    end = time.monotonic() + 10
    while loops() and time.monotonic() < end:
        time.sleep(0.05)
    assert loops() == 0
