"""Every background worker: a failure with private text in reach puts none of it out.

Output is the log in both forms, the dead letters, alerts, run errors and traces. ``WORKERS`` lists the places where
work goes on behind a request; a new one without a test fails.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import gc
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from anyio.from_thread import start_blocking_portal
from mor_core import background, run_stage, tracing
from mor_core.background import in_background
from mor_core.run_announcements import RunAnnouncement, announce
from mor_core.run_stage import RunStage
from mor_core.runs import Claim, RunSpec, RunState
from mor_core.settings import StageSettings
from mor_core.stage import Stage
from mor_core.stream_consumer import Entry
from mor_core.streams import Streams
from mor_core.tasks import in_thread, stop
from mor_core.wire import Message, PromptRecord
from mor_reward.backbones import Example
from mor_reward.scoring_engine import ScoringEngine
from mor_router.leadership import Leadership
from mor_router.learning.labels import function_labeller
from mor_router.learning.labels.function_labeller import FunctionLabeller
from mor_router.learning.labels.labeller import SampledGroup
from mor_router.trust.auditor import Auditor
from mor_router.trust.honeypots import Honeypots
from mor_trainer.config import ControlSettings, WorkerSettings
from mor_trainer.control.webhook import Webhook
from mor_trainer.event_log import EventLog
from mor_trainer.run import worker as worker_module
from mor_trainer.run.lease import RunLease
from mor_trainer.run.worker import TrainingWorker
from mor_trainer.trackers.trackers import Trackers
from mor_trainer.weights.background_publication import BackgroundPublication
from prometheus_client import REGISTRY, generate_latest
from redis.asyncio import Redis

from tests.core.records import prompt
from tests.secrecy.marks import MARKS, Quoting, fail, fail_async, found, logged, quote_all
from tests.test_architecture import MODULES, ROOT

pytestmark = pytest.mark.anyio

ENTRIES = {"asyncio.create_task", "tasks.create_task", "asyncio.ensure_future", "in_background", "background.start"} | {
    "threading.Thread"
}
WORKERS: dict[str, str] = {
    "mor_client/machine/rotated_log.py:threading.Thread": "thread",
    "mor_client/kept_transport.py:threading.Thread": "thread",
    "mor_client/rewards/reward_calls.py:asyncio.create_task": "task",
    "mor_core/background.py:asyncio.create_task": "background",
    "mor_core/json_route.py:asyncio.create_task": "task",
    "mor_core/metrics_server.py:threading.Thread": "thread",
    "mor_router/clients/name_lookup.py:threading.Thread": "thread",
    "mor_core/stage.py:asyncio.create_task": "stage",
    "mor_core/run_stage.py:in_background": "background",
    "mor_core/run_stage.py:tasks.create_task": "stage",
    "mor_core/entry_leases.py:in_background": "background",
    "mor_core/tasks.py:asyncio.create_task": "task",
    "mor_core/timed_calls.py:threading.Thread": "thread",
    "mor_core/token_watch.py:background.start": "background",
    "mor_reward/answers/answer_guard.py:background.start": "background",
    "mor_reward/function_scorer.py:threading.Thread": "thread",
    "mor_reward/scoring_service.py:background.start": "scoring",
    "mor_rollout/chat/completions.py:asyncio.create_task": "task",
    "mor_rollout/engines/transformers_engine.py:asyncio.ensure_future": "task",
    "mor_rollout/engines/vllm/vllm_engine.py:asyncio.create_task": "task",
    "mor_rollout/rollout_service.py:asyncio.create_task": "rollout",
    "mor_rollout/rollout_service.py:in_background": "background",
    "mor_rollout/weights/download.py:asyncio.create_task": "task",
    "mor_rollout/weights/pull.py:asyncio.create_task": "task",
    "mor_router/clients/client_components.py:in_background": "background",
    "mor_router/clients/discovery/discovery.py:asyncio.create_task": "leadership",
    "mor_router/clients/minute_quota.py:asyncio.create_task": "task",
    "mor_router/clients/scoring.py:asyncio.create_task": "task",
    "mor_router/leadership.py:asyncio.ensure_future": "leadership",
    "mor_router/learning/gate_fitter.py:in_background": "background",
    "mor_router/learning/learning_components.py:in_background": "background",
    "mor_router/rewarding/coalescer.py:asyncio.create_task": "task",
    "mor_router/rewarding/pipeline.py:asyncio.create_task": "task",
    "mor_router/trust/auditor.py:asyncio.create_task": "audit",
    "mor_router/trust/honeypots.py:asyncio.create_task": "honeypots",
    "mor_router/wiring.py:in_background": "background",
    "mor_trainer/app.py:in_background": "background",
    "mor_trainer/control/ingest.py:background.start": "background",
    "mor_trainer/control/ingest.py:in_background": "background",
    "mor_trainer/control/model_exports.py:asyncio.create_task": "task",
    "mor_trainer/control/model_pushes.py:asyncio.create_task": "task",
    "mor_trainer/control/run_creator.py:asyncio.create_task": "task",
    "mor_trainer/groups/exchange_tasks.py:asyncio.create_task": "training",
    "mor_trainer/run/lease.py:in_background": "background",
    "mor_trainer/rank_watch.py:threading.Thread": "thread",
    "mor_trainer/trackers/trackers.py:threading.Thread": "trackers",
    "mor_trainer/weights/background_publication.py:threading.Thread": "training",
}
"""Place that starts work -> the case below that shows what becomes of its failure. ``task``: nobody catches it in
between, so that it comes out of the request, or asyncio logs it."""


def places() -> Iterator[str]:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and (called := ast.unparse(node.func)) in ENTRIES:
                yield f"{'/'.join(path.relative_to(ROOT).parts[2:])}:{called}"


def test_every_place_that_starts_work_has_a_case() -> None:
    assert set(places()) == set(WORKERS), "name the case that covers the new place, or write one"
    assert {f"fails_{case}" for case in WORKERS.values()} <= {name for name in globals() if name.startswith("fails_")}


class FailingRun(RunStage[PromptRecord]):
    stage, source, target = "rollout", "prompts", "rollouts"

    async def process(self, entries: Sequence[Entry[PromptRecord]]) -> None:
        with tracing.span("sample", parent="", note=MARKS["redispassword"]):
            fail(entries)


class FailingStage(Stage[PromptRecord]):
    async def open(self, announcement: RunAnnouncement) -> FailingRun:
        settings = StageSettings(lease_s=0.05)
        return FailingRun(announcement.run, self._redis, settings, asyncio.Semaphore(2))


async def fails_stage(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_stage, "_BLOCK_S", 0.02)
    patch.setattr(run_stage, "MOST_DELIVERIES", 1)
    streams = Streams(redis, run, 256)
    await announce(redis, run, "model")
    await streams.publish("prompts", prompt(run), timeout_s=5)
    work = asyncio.create_task(FailingStage(redis, watch_s=0.05).work())
    try:
        for _ in range(500):
            if letters := await redis.xrange(streams.key("dead")):
                break
            await asyncio.sleep(0.02)
    finally:
        await stop([work])
    out += [str(letters)]
    assert "Quoting in" in str(letters)


async def fails_background(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    async with in_background(functools.partial(fail_async, MARKS)):
        await asyncio.sleep(0.01)
        out += background.ended_tasks(essential=True).values()


async def fails_task(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        task = asyncio.create_task(in_thread(fail, MARKS), name="work")
        await asyncio.wait([task])
        del task
        gc.collect()
        asyncio.get_running_loop().call_soon(fail, *MARKS.values())
        await asyncio.sleep(0.01)

    await asyncio.to_thread(asyncio.run, work())  # a loop with asyncio's own handler


async def fails_thread(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    thread = threading.Thread(target=fail, args=tuple(MARKS.values()))
    thread.start()
    await asyncio.to_thread(thread.join)


async def fails_scoring(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    scorer = SimpleNamespace(uses_pictures=True, unscorable_reason=lambda _: None, score=fail)
    message = Message.model_validate({"role": "user", "content": MARKS["prompt"]})
    engine = ScoringEngine(scorer, temperature=1.0, batch_responses=2)  # type: ignore[arg-type]
    outcomes = engine.run([[Example((message,), (), MARKS["response"])]] * 2)
    out += [str(outcome.detail) for outcome in outcomes]
    assert outcomes[0].status == "error"


async def fails_rollout(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    from mor_rollout import rollout_service
    from mor_rollout.config import RolloutSettings

    patch.setattr(rollout_service.os, "kill", lambda *_: None)
    service = rollout_service.RolloutService(RolloutSettings(model="none"))
    idle = SimpleNamespace(failure=None)

    async def bring_up() -> None:
        service.stage, service.swapper = SimpleNamespace(work=fail_async), idle  # type: ignore[assignment]

    patch.setattr(service, "_bring_up", bring_up)
    await service._run()
    out += [str(service.failure), str(await service.ready())]


async def fails_leadership(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    leading = asyncio.create_task(Leadership(redis, run, lease_s=1.0).while_leading(fail_async))
    await asyncio.sleep(0.3)
    await stop([leading])


async def fails_honeypots(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    honeypots = Honeypots.__new__(Honeypots)
    await honeypots._guarded(fail_async(), "helpful")


async def fails_audit(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Auditor, "_audit", fail_async)
    auditor, group = Auditor.__new__(Auditor), SimpleNamespace(item=MARKS["prompt"])
    await auditor._keep("helpful", group, SimpleNamespace())  # type: ignore[arg-type]


async def fails_webhook(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(500, text=quote_all())

    url = f"https://hooks.example/{MARKS['webhooksecret'].replace('/', '_')}?token={MARKS['webhooksecret']}"
    alert = SimpleNamespace(id=1, model_dump=lambda **_: {})
    alerts = SimpleNamespace(due=lambda: (alert, 0), mark_failed=lambda *_: None)
    settings = ControlSettings(alert_webhook_url=url)  # type: ignore[arg-type]
    webhook = Webhook(settings, alerts)  # type: ignore[arg-type]
    for transport in (httpx.MockTransport(answer), httpx.MockTransport(_unreachable)):
        async with httpx.AsyncClient(transport=transport) as http:
            await webhook._send_next(http, url)


def _unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused", request=request)


async def fails_lease(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> None:
        request = httpx.Request("POST", f"http://mor:{MARKS['servicetoken'].replace('/', '_')}@control/v1/runs")
        raise httpx.HTTPStatusError(f"for url {request.url} {quote_all()}", request=request, response=None)  # type: ignore[arg-type]

    claim = Claim(run=run, attempt=1, lease_s=60, spec=RunSpec(name="r", model="m", prompts="p", steps=1))
    lease = RunLease(SimpleNamespace(send_heartbeat=refuse), claim, 0.01, EventLog(claim.run, claim.attempt))  # type: ignore[arg-type]
    async with lease.renewing():
        await asyncio.sleep(0.03)


async def fails_trackers(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    def begin(*_: Any) -> None:
        raise Quoting(f"API request to https://mor:{MARKS['servicetoken'].replace('/', '_')}@mlflow/api failed")

    tracker = SimpleNamespace(name="mlflow", begin=begin)
    trackers = Trackers([tracker], lambda _, reason: out.append(reason), 5)  # type: ignore[list-item]
    trackers.add_end(run, RunSpec(name="r", model="m", prompts="p", steps=1), RunState.finished)
    trackers.close(5)
    assert out


async def fails_training(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    """A step fails, in the training thread or in one of publication or of the exchange, and the run with it."""
    publication = BackgroundPublication(fail, timeout_s=5)
    publication.begin(1, {})
    loop = SimpleNamespace(run=publication.finish)
    patch.setattr(worker_module, "TrainingLoop", lambda *_, **__: loop)
    patch.setattr(TrainingWorker, "_report", lambda *_, **end: out.append(str(end["error"])))
    claim = Claim(run=run, attempt=1, lease_s=60, spec=RunSpec(name="r", model="m", prompts="p", steps=1))

    def train() -> None:
        worker = TrainingWorker(WorkerSettings())
        with start_blocking_portal("asyncio") as portal:
            beats = SimpleNamespace(send_heartbeat=fail_async)
            worker._train(portal, beats, claim, time.monotonic())  # type: ignore[arg-type]

    await asyncio.to_thread(train)
    assert out and "Quoting in" in out[0]


async def fails_labeller(redis: Redis, run: str, out: list[str], tmp_path: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(function_labeller, "load_checker", lambda _: fail)
    try:
        await FunctionLabeller("checker").label(SampledGroup((), ("a", "b"), {}), MARKS["prompt"], 5)
    except Exception as error:
        out += [str(error)]
    assert out


CASES = {name.removeprefix("fails_"): case for name, case in list(globals().items()) if name.startswith("fails_")}


@pytest.mark.parametrize("style", ["json", "console"])
@pytest.mark.parametrize("case", CASES)
async def test_a_failing_worker_shows_nothing(
    case: str, style: Any, redis: Redis, run_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out: list[str] = []
    with logged(style) as buffer:
        await CASES[case](redis, run_name, out, tmp_path, monkeypatch)
    log = buffer.getvalue()
    assert log or out
    assert not found(log)
    assert not found("\n".join(out))
    assert not found(generate_latest(REGISTRY).decode())
