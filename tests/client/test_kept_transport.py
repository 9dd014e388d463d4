"""Connections for rewards that stay open between blocking calls, on a real router."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from threading import enumerate as threads
from types import FrameType
from unittest.mock import patch

import httpx
import pytest
from mor_client import Mor
from mor_client.async_transport import AsyncTransport
from mor_client.errors import ServiceError
from mor_client.kept_transport import KeptTransport
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

    def score() -> bool:
        scored = scorer.rewards.score([GROUP])[0].status == "ok"
        scorer.close()
        return scored

    assert succeeds_in_fork(score)
    assert scorer.rewards.score([GROUP])[0].status == "ok"


def succeeds_in_fork(work: Callable[[], bool]) -> bool:
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            os._exit(2)
    end = time.monotonic() + 30
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < end:
        time.sleep(0.05)
    if ended == (0, 0):
        os.kill(child, 9)
        os.waitpid(child, 0)
    return ended == (child, 0)


def test_a_process_may_fork_while_another_thread_opens_one(scorer: Mor) -> None:
    opening, go_on = threading.Event(), threading.Event()

    def opened() -> AsyncTransport:
        if threading.current_thread() is thread:
            opening.set()
            go_on.wait(30)
        return AsyncTransport(scorer.router, 1, "MOR_REWARD_TIMEOUT_S")

    async def call(_: AsyncTransport) -> bool:
        return True

    kept = KeptTransport(opened)
    thread = threading.Thread(target=lambda: kept.run(call))
    thread.start()
    try:
        assert opening.wait(30)
        assert succeeds_in_fork(lambda: kept.run(call))
    finally:
        go_on.set()
        thread.join(30)
        kept.close()


def test_a_call_ends_with_an_error_where_another_thread_closes(scorer: Mor) -> None:
    kept = KeptTransport(lambda: AsyncTransport(scorer.router, 1, "MOR_REWARD_TIMEOUT_S"))
    begun = threading.Event()

    async def call(_: AsyncTransport) -> None:
        begun.set()
        await asyncio.sleep(60)

    def close() -> None:
        begun.wait(30)
        kept.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(ServiceError, match="router: it was closed during the call; close it when"):
        kept.run(call)
    thread.join(30)
    assert loops() == 0


def test_threads_that_call_and_close_always_go_on(scorer: Mor) -> None:
    kept = KeptTransport(lambda: AsyncTransport(scorer.router, 1, "MOR_REWARD_TIMEOUT_S"))
    ended: list[bool] = []

    async def call(_: AsyncTransport) -> bool:
        return True

    def work() -> None:
        for _ in range(20):
            try:
                ended.append(kept.run(call))
            except ServiceError:
                ended.append(False)
            kept.close()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert len(ended) == 80
    assert loops() == 0


def test_a_copy_opens_its_own(scorer: Mor, clinic: Endpoint) -> None:
    """Trainers send their rewards to worker processes."""
    unused = Mor(scorer.settings)
    for copy in (deepcopy(unused), pickle.loads(pickle.dumps(unused))):
        assert copy.rewards.score([GROUP])[0].status == "ok"
        copy.close()


def test_a_program_ends_at_once_and_quietly_with_open_connections(mor: Installation, clinic: Endpoint) -> None:
    mor.use("scorer")
    program = (
        "from mor_client import Mor; from mor_client.rewards import RewardGroup\n"
        "mor = Mor(); print(mor.rewards.score([RewardGroup.of('What?', ['a 1', 'b 2'])])[0].status)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "MOR_CONFIG": str(mor.config)}, timeout=60,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "ok\n", "")


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
    """At once: in a program with many objects, Python looks for unreachable ones seldom."""
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            Mor(scorer.settings).rewards.score([GROUP])
        end = time.monotonic() + 10
        while loops() and time.monotonic() < end:
            time.sleep(0.05)
        assert loops() == 0
    finally:
        gc.enable()
