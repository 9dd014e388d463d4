"""Lease of a worker on its run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest
from anyio.from_thread import start_blocking_portal
from mor_core.errors import Unavailable
from mor_core.runs import Claim, ClaimRequest, Heartbeat, HeartbeatReply, RunState
from mor_trainer.config import WorkerSettings
from mor_trainer.event_log import EventLog
from mor_trainer.ranks import Ranks, device_of
from mor_trainer.run.interruption import Interruption
from mor_trainer.run.lease import RunControl, RunLease, RunLeaseLost
from structlog.testing import capture_logs

from tests.trainer.kit import make_spec

pytestmark = pytest.mark.anyio

LEASE_S = 0.5
GOOD = json.dumps({"desired": "run", "events_seen": 0}).encode()
NEWER = json.dumps({"desired": "pause", "events_seen": 0, "replay": {}, "next": {"deep": [1]}}).encode()


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(body)}", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ANSWERS = {
    "another body": answer(b"<html>Sign in</html>"),
    "another object": answer(b'{"status": "ok"}'),
    "another value": answer(json.dumps({"desired": "dance", "events_seen": 0}).encode()),
    "an empty body": answer(b""),
    "bytes that are no text": answer(b"\xff\xfe\x00"),
    "another success": answer(b"", "204 No Content"),
    "a redirect": answer(b"", "302 Found", "location: http://127.0.0.1:1/"),
    "a failure": answer(b"{}", "500 Internal Server Error"),
    "a refusal of the token": answer(b"{}", "401 Unauthorized"),
    "another protocol": b"-ERR unknown command\r\n",
    "half a header": b"HTTP/1.1 200 OK\r\ncontent-le",
    "half a body": answer(GOOD)[:-4],
    "an impossible length": b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n",
    "an unknown encoding": answer(GOOD, "200 OK", "content-encoding: gzip"),
}


@contextlib.asynccontextmanager
async def control(reply: Callable[[], bytes]) -> AsyncIterator[RunControl]:
    """A server that sends the same bytes for each request, and a worker's client of it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(reply())
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = WorkerSettings.model_validate({"control_url": f"http://127.0.0.1:{port}", "service_token": "t"})
    found = RunControl(settings, ClaimRequest(worker="w"))
    async with server:
        try:
            yield found
        finally:
            await found.close()


def lease_of(found: RunControl, lease_s: float = LEASE_S) -> RunLease:
    claim = Claim(run="r", attempt=1, lease_s=lease_s, spec=make_spec(Path("model"), Path("prompts.jsonl")))
    return RunLease(found, claim, heartbeat_s=0.05, events=EventLog(claim.run, claim.attempt))


async def lost_after(lease: RunLease) -> float:
    began = time.monotonic()
    while lease.lost is None and time.monotonic() < began + 10:  # noqa: ASYNC110 - nothing announces it
        await asyncio.sleep(0.01)
    return time.monotonic() - began


async def test_answers_that_cannot_be_read_end_the_lease_in_time() -> None:
    together = asyncio.Barrier(len(ANSWERS))

    async def lost(sent: bytes) -> float:
        async with control(lambda: sent) as found:
            await together.wait()
            lease = lease_of(found, 4 * LEASE_S)  # longer, because all are tried at the same time
            async with lease.renewing():
                return await lost_after(lease)

    seconds = await asyncio.gather(*map(lost, ANSWERS.values()))
    assert {kind: after for kind, after in zip(ANSWERS, seconds, strict=True) if after > 4 * LEASE_S} == {}


async def test_a_lease_outlives_a_few_answers_that_cannot_be_read() -> None:
    together = asyncio.Barrier(len(ANSWERS))

    async def reason(sent: bytes) -> str | None:
        answers = [sent] * 2
        async with control(lambda: answers.pop() if answers else answer(GOOD)) as found:
            await together.wait()
            lease = lease_of(found, 12 * LEASE_S)  # far longer than the good answers take on a busy machine
            began = time.monotonic()
            async with lease.renewing():
                while lease.lost is None and (answers or time.monotonic() < began + 13 * LEASE_S):  # noqa: ASYNC110 - nothing announces it
                    await asyncio.sleep(0.05)
                return lease.lost

    reasons = await asyncio.gather(*map(reason, ANSWERS.values()))
    assert {kind: lost for kind, lost in zip(ANSWERS, reasons, strict=True) if lost is not None} == {}


async def test_an_answer_of_a_newer_run_control_renews_the_lease() -> None:
    async with control(lambda: answer(NEWER)) as found:
        lease = lease_of(found, 4 * LEASE_S)
        async with lease.renewing():
            await asyncio.sleep(5 * LEASE_S)
            assert lease.lost is None
            assert lease.desired == "pause"


async def test_a_claim_of_a_newer_run_control_is_taken_and_one_that_cannot_be_read_is_none() -> None:
    claim = Claim(run="r", attempt=1, lease_s=60, spec=make_spec(Path("model"), Path("prompts.jsonl")))
    newer = claim.model_dump(mode="json") | {"next": 1}
    newer["spec"] |= {"next": 2}
    newer["spec"]["algorithm"] |= {"next": 3}
    async with control(lambda: answer(json.dumps(newer).encode())) as found:
        with capture_logs() as logged:
            assert await found.claim() == claim
    assert [line["fields"] for line in logged] == [["spec.next", "spec.algorithm.next"]]
    async with control(lambda: answer(b"{}")) as found:
        with pytest.raises(Unavailable, match="cannot be read"):
            await found.claim()


class BrokenControl:
    """Run control whose client raises what nobody thought of."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def send_heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        raise self.error


@pytest.mark.parametrize(
    "error", [RuntimeError("unforeseen"), asyncio.CancelledError(), StopAsyncIteration()], ids=repr
)
async def test_whatever_ends_the_heartbeats_the_lease_ends_in_time(error: BaseException) -> None:
    lease = lease_of(cast(RunControl, BrokenControl(error)))
    async with lease.renewing():
        await asyncio.sleep(LEASE_S)
        assert lease.lost is not None


async def test_a_lease_stays_lost() -> None:
    async with control(lambda: answer(GOOD)) as found:
        lease = lease_of(found)
        reason = (await lost_after(lease), lease.lost)[1]
        await lease.report_held(RunState.running)
        assert lease.lost == reason


async def test_a_lease_counts_from_the_request_and_not_from_its_answer() -> None:
    def late() -> bytes:
        time.sleep(0.2)
        return answer(GOOD)

    async with control(late) as found:
        lease = lease_of(found)
        await lease.report_held(RunState.running)
        await asyncio.sleep(LEASE_S - 0.1)  # later than a whole lease after the request, earlier than after the answer
        assert lease.lost is not None


def test_a_training_thread_finds_the_lease_lost_while_the_event_loop_hangs() -> None:
    with start_blocking_portal("asyncio") as portal:

        async def make() -> RunLease:
            return lease_of(cast(RunControl, SlowControl()))

        lease = portal.call(make)
        interruption = Interruption(portal, lease, Ranks(device_of("cpu")))
        with portal.wrap_async_context_manager(lease.renewing()):
            interruption.check_lease()
            over = threading.Event()
            portal.start_task_soon(lambda: hang(over))
            time.sleep(LEASE_S)
            with pytest.raises(RunLeaseLost, match="has not confirmed"):
                interruption.check_lease()
            over.set()


async def hang(over: threading.Event) -> None:
    over.wait(10)


class SlowControl:
    """Run control that takes its time to answer the end of a run."""

    def __init__(self) -> None:
        self.received: list[Heartbeat] = []

    async def send_heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        self.received.append(heartbeat)
        await asyncio.sleep(0.1 if heartbeat.state is RunState.finished else 0)
        return HeartbeatReply(desired="run", events_seen=0)


async def test_the_end_is_reported_once_with_the_final_checkpoint() -> None:
    found = SlowControl()
    claim = Claim(run="r", attempt=1, lease_s=60, spec=make_spec(Path("model"), Path("prompts.jsonl")))
    lease = RunLease(cast(RunControl, found), claim, heartbeat_s=0.01, events=EventLog(claim.run, claim.attempt))
    async with lease.renewing():
        await lease.report_end(RunState.finished, final="/final")
    assert [heartbeat.final for heartbeat in found.received if heartbeat.state is RunState.finished] == ["/final"]
    assert len(found.received) > 2, "heartbeats went on meanwhile"
