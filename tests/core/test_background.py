"""Long-lived tasks are started again, and readiness names those that ended."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from mor_core.background import in_background, start
from mor_core.metrics import TASK_RESTARTS
from mor_core.service import create_service
from mor_core.settings import ServiceSettings
from mor_core.tasks import stop
from structlog.testing import capture_logs

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


class Failing:
    """Work that fails a number of times before it lasts."""

    def __init__(self, *errors: BaseException) -> None:
        self._errors = list(errors)
        self.lasting = asyncio.Event()

    async def work(self) -> None:
        if self._errors:
            raise self._errors.pop(0)
        self.lasting.set()
        await asyncio.Event().wait()


def restarts() -> float:
    return TASK_RESTARTS.labels("Failing.work")._value.get()


@pytest.mark.parametrize("error", [ValueError("no such key"), asyncio.CancelledError(), MemoryError()], ids=repr)
async def test_a_task_that_ends_is_logged_counted_and_started_again(error: BaseException) -> None:
    failing, before = Failing(error), restarts()
    with capture_logs() as logged:
        async with in_background(failing.work), asyncio.timeout(10):
            await failing.lasting.wait()
    [line] = logged
    assert line["event"] == "background work ended; it starts again"
    assert line["work"] == "Failing.work"
    assert line["exc_info"] is error
    assert restarts() == before + 1


async def test_the_others_go_on_and_all_end_with_the_body() -> None:
    failing, other = Failing(ValueError()), Failing()
    async with in_background(failing.work, others=[other.work]), asyncio.timeout(10):
        await other.lasting.wait()
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "Failing.work"]
        assert len(tasks) == 2
    assert all(task.cancelled() for task in tasks)


async def test_a_task_that_returns_is_not_started_again() -> None:
    times = []

    async def once() -> None:
        times.append(1)

    task = start(once)
    await task
    assert times == [1]


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    yield


async def test_readiness_names_a_task_that_ended_until_it_starts_again() -> None:
    app = create_service("test", ServiceSettings(), lifespan, {}, version="1")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
        for essential, status, part in ((True, 503, "missing"), (False, 200, "degraded")):
            failing = Failing(ConnectionRefusedError("nobody listens"))
            task = start(failing.work, essential=essential)
            await asyncio.sleep(0.05)
            reply = await http.get("/readyz")
            assert reply.status_code == status
            assert "nobody listens; it starts again" in reply.json()[part]["Failing.work"]
            async with asyncio.timeout(10):
                await failing.lasting.wait()
            assert (await http.get("/readyz")).json() == {"ready": True, "missing": {}, "degraded": {}}
            await stop([task])


async def test_a_task_that_is_stopped_while_it_waits_is_named_no_longer() -> None:
    app = create_service("test", ServiceSettings(), lifespan, {}, version="1")
    task = start(Failing(ValueError()).work, essential=True)
    await asyncio.sleep(0.05)
    await stop([task])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t") as http:
        assert (await http.get("/readyz")).status_code == 200


SHORT = {
    "packages/mor_client/mor_client/machine/rotated_log.py:RotatedLog.follow": "a thread; its end closes the pipe",
    "packages/mor_client/mor_client/kept_transport.py:_Running.__init__": "a thread; calls await what it runs",
    "packages/mor_client/mor_client/rewards/reward_calls.py:RewardCalls._score": "requests of one call, awaited",
    "packages/mor_core/mor_core/background.py:start": "what watches long-lived tasks",
    "packages/mor_core/mor_core/json_route.py:_with_caller": "one request, awaited",
    "packages/mor_core/mor_core/metrics_server.py:MetricsServer.serving": "a thread; /readyz says when it ends",
    "packages/mor_core/mor_core/run_stage.py:RunStage._handle": "entries of a batch, in a group that is awaited",
    "packages/mor_core/mor_core/run_stage.py:RunStage.work": "batches, in a group that is awaited",
    "packages/mor_core/mor_core/stage.py:Stage._follow": "work on a run, which the same loop starts again",
    "packages/mor_core/mor_core/tasks.py:within": "awaited",
    "packages/mor_core/mor_core/timed_calls.py:TimedCalls._start": "a thread of one call, which has a time limit",
    "services/rollout/mor_rollout/chat/completions.py:_Session.deltas": "one request, awaited",
    "services/rollout/mor_rollout/engines/transformers_engine.py:TransformersEngine.stream": "one response, awaited",
    "services/rollout/mor_rollout/engines/vllm/vllm_engine.py:VllmEngine.sample": "one group, awaited",
    "services/rollout/mor_rollout/rollout_service.py:RolloutService.start": "the service, which ends with it",
    "services/rollout/mor_rollout/weights/download.py:_download": "writing of a chunk, awaited",
    "services/rollout/mor_rollout/weights/pull.py:WeightsStore.pull": "one download, awaited",
    "services/router/mor_router/clients/discovery/discovery.py:Discovery._lead": "awaited; a failure starts all again",
    "services/router/mor_router/clients/minute_quota.py:MinuteQuota.add": "one count, awaited by all that it counts",
    "services/router/mor_router/clients/name_lookup.py:resolve": "a thread of one look-up",
    "services/router/mor_router/clients/scoring.py:ScoreRequester.fan_out": "calls of one batch, awaited",
    "services/router/mor_router/leadership.py:Leadership._lead": "awaited, and started again at the next acquisition",
    "services/router/mor_router/rewarding/coalescer.py:Coalescer._reward_complete": "one batch; callers get an error",
    "services/router/mor_router/rewarding/pipeline.py:RewardPipeline._reward_alike": "one batch, awaited",
    "services/router/mor_router/trust/auditor.py:Auditor.consider": "storing of one group",
    "services/router/mor_router/trust/honeypots.py:Honeypots._start": "one honeypot",
    "services/reward/mor_reward/function_scorer.py:_FunctionLoop.__init__": "a loop whose calls are awaited",
    "services/reward/mor_reward/upstream/connection.py:DeadlineCalls.post": "calls of one group, awaited",
    "services/trainer/mor_trainer/control/model_exports.py:ModelExports.begin": "one export, whose end is reported",
    "services/trainer/mor_trainer/control/model_pushes.py:ModelPushes.begin": "one push, whose end is reported",
    "services/trainer/mor_trainer/control/run_creator.py:RunCreator.create": "one request, awaited",
    "services/trainer/mor_trainer/groups/exchange_tasks.py:ExchangeTasks.start": "wait for outages, else fail the run",
    "services/trainer/mor_trainer/rank_watch.py:watched": "threads; the other ranks end when these stand still",
    "services/trainer/mor_trainer/trackers/trackers.py:_Queue.__init__": "a thread that outlives every failure",
    "services/trainer/mor_trainer/weights/background_publication.py:BackgroundPublication.begin": "a thread, joined",
}
"""Functions that start a task or thread by themselves, and who notices its end."""
STARTERS = {"create_task", "ensure_future", "TaskGroup", "Thread", "start_soon", "start_task_soon"}


def starting_functions(path: Path) -> set[str]:
    """Return the functions of a module that start tasks or threads, with their classes."""
    found = set()

    def visit(node: ast.AST, names: tuple[str, ...]) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = (*names, node.name) if not names or names[-1][0].isupper() or names[-1][1:2].isupper() else names
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTERS:
            found.add(f"{path.relative_to(ROOT)}:{'.'.join(names)}")
        for child in ast.iter_child_nodes(node):
            visit(child, names)

    visit(ast.parse(path.read_text()), ())
    return found


def test_every_long_lived_task_is_watched() -> None:
    modules = [*ROOT.glob("packages/*/mor_*/**/*.py"), *ROOT.glob("services/*/mor_*/**/*.py")]
    found = set().union(*map(starting_functions, modules))
    assert found == set(SHORT), "start a long-lived task by mor_core.background, or say here who notices its end"
