"""Lease of a worker on its run."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest
from mor_core.runs import Claim, Heartbeat, HeartbeatReply, RunState
from mor_trainer.event_log import EventLog
from mor_trainer.run.lease import RunControl, RunLease

from tests.trainer.kit import make_spec

pytestmark = pytest.mark.anyio


class SlowControl:
    """Run control that takes its time to answer the end of a run."""

    def __init__(self) -> None:
        self.received: list[Heartbeat] = []

    async def send_heartbeat(self, run: str, heartbeat: Heartbeat) -> HeartbeatReply:
        self.received.append(heartbeat)
        await asyncio.sleep(0.1 if heartbeat.state is RunState.finished else 0)
        return HeartbeatReply(desired="run", events_seen=0)


async def test_the_end_is_reported_once_with_the_final_checkpoint() -> None:
    control = SlowControl()
    claim = Claim(run="r", attempt=1, lease_s=60, spec=make_spec(Path("model"), Path("prompts.jsonl")))
    lease = RunLease(cast(RunControl, control), claim, heartbeat_s=0.01, events=EventLog(claim.run, claim.attempt))
    async with lease.renewing():
        await lease.report(RunState.finished, final="/final")
    assert [heartbeat.final for heartbeat in control.received if heartbeat.state is RunState.finished] == ["/final"]
    assert len(control.received) > 2, "heartbeats went on meanwhile"
