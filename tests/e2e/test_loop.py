"""The whole loop as in a cluster: clients, router, vLLM, run control and a training process, on real pictures.

The VLM is tiny and random, the pictures are easy-vqa's. The tests show that all parts work together, that the engine
samples with the weights that the trainer published, and that a killed process loses nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mor_core.redis_users import USERS
from redis import Redis as SyncRedis

from tests.certificates import NO_AUTHORITIES
from tests.collector import Collector, Received, collecting
from tests.conftest import Valkey
from tests.e2e.processes import CLIENT_TOKEN, TOKENS, Processes
from tests.shapes import copy_questions, write_rows

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

STEPS = 4
GROUPS = 4
SIZE = 4
ADMIN = {"Authorization": f"Bearer {TOKENS['operator'][0]}"}


class Loop:
    def __init__(
        self,
        processes: Processes,
        control: str,
        rollout: str,
        router: str,
        scorer: str,
        prompts: Path,
        model: Path,
        collector: Collector,
    ) -> None:
        self.processes, self.control, self.rollout, self.router = processes, control, rollout, router
        self.scorer, self.prompts, self.model, self.collector = scorer, prompts, model, collector

    def get(self, url: str) -> Any:
        answer = httpx.get(url, headers=ADMIN, timeout=30, verify=NO_AUTHORITIES)
        assert answer.is_success, answer.text
        return answer.json()

    def create(self, name: str, **spec: Any) -> str:
        body = {
            "name": name,
            "model": str(self.model),
            "prompts": str(self.prompts),
            "steps": STEPS,
            "groups_per_step": GROUPS,
            "group_size": SIZE,
            "sampling": {"max_tokens": 8},
            "optimiser": {"lr": 1e-3, "warmup_steps": 0},
            "checkpoint_every": 1,
            **spec,
        }
        answer = httpx.post(f"{self.control}/v1/runs", json=body, headers=ADMIN, timeout=60)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def wait(self, run: str, until: Any, timeout_s: float = 240) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        while True:
            snapshot: dict[str, Any] = self.get(f"{self.control}/v1/runs/{run}")
            if until(snapshot):
                return snapshot
            assert snapshot["state"] != "failed", snapshot["error"]
            assert time.monotonic() < deadline, f"{snapshot}\n" + "\n".join(
                f"--- {name}\n{self.processes.log(name)}" for name in ("worker", "router", "rollout")
            )
            time.sleep(0.2)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def least_privileges(server: Valkey) -> dict[str, str]:
    """Create the user of each process on the queue server; return their addresses."""
    with SyncRedis.from_url(server.url) as redis:
        for name, user in USERS.items():
            redis.execute_command("ACL", "SETUSER", name, "on", ">secret", *user.rules.split())
    return {name: server.url.replace("redis://", f"redis://{name}:secret@") for name in USERS}


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory, tiny_vlm: Path, collector: Collector) -> Iterator[Loop]:
    folder = tmp_path_factory.mktemp("loop")
    (folder / "valkey").mkdir()
    server = Valkey(folder / "valkey")
    processes = Processes(folder, server.url, tiny_vlm)
    redis_of = {name: {"MOR_REDIS_URL": url} for name, url in least_privileges(server).items()}
    processes.environment |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.address, "OTEL_BSP_SCHEDULE_DELAY": "200"}
    try:
        clients = {}
        for name in ("length", "vowels"):
            function = f"{Path(__file__).with_name('scorers.py')}:{name}"
            clients[name] = processes.serve(name, "mor-reward", "serve", "--function", function)
        control = processes.serve("control", "mor-trainer", "serve", MOR_RUN_LEASE_S="5", **redis_of["control"])
        processes.environment["MOR_CONTROL_URL"] = control
        rollout = processes.serve("rollout", "mor-rollout", "serve", **redis_of["rollout"])
        refits = {"MOR_POLICY_URL": rollout, "MOR_REFIT_MAX_TOKENS": "8"}
        router = processes.serve("router", "mor-router", "serve", **refits, **redis_of["router"])
        for name, url in clients.items():
            body = {"name": name, "url": url, "domains": "shapes", "token": CLIENT_TOKEN}
            answer = httpx.post(f"{router}/v1/clients", json=body, headers=ADMIN, timeout=30)
            assert answer.is_success, answer.text
            change = {"state": "active", "reason": "no anchors in this test"}
            answer = httpx.patch(f"{router}/v1/clients/{name}", json=change, headers=ADMIN, timeout=30)
            assert answer.is_success, answer.text
        processes.start("worker", "mor-trainer", "work", **redis_of["worker"])
        prompts = write_rows(folder / "prompts.jsonl", copy_questions(folder, 40))
        yield Loop(processes, control, rollout, router, clients["length"], prompts, tiny_vlm, collector)
        statuses = processes.stop()
        assert all(status in (0, -15, 143) for status in statuses.values()), statuses
    finally:
        processes.stop()
        server.stop()


def finished(snapshot: dict[str, Any]) -> bool:
    return snapshot["state"] == "finished"


def test_a_run_goes_from_prompts_to_an_aligned_checkpoint(loop: Loop) -> None:
    run = loop.create("loop")
    snapshot = loop.wait(run, finished)
    assert (snapshot["step"], snapshot["progress"]) == (STEPS, 1.0)
    points = loop.get(f"{loop.control}/v1/runs/{run}/metrics")["points"]
    assert [point["step"] for point in points] == [1, 2, 3, 4]
    for point in points:
        assert point["sampled_by"] == [point["step"] - 1], "on-policy: a step trains on samples of the previous version"
        assert abs(point["importance_ratio_mean"] - 1) < 1e-3
        assert point["importance_ratio_max"] < 1.01
        assert set(point["clients"]) == {"length", "vowels"}
        assert sum(client["weight"] for client in point["clients"].values()) == pytest.approx(1)
    applied = [group for point in points for group in point["applied"]]
    assert len(applied) == len(set(applied)) == STEPS * GROUPS
    status = loop.get(f"{loop.rollout}/v1/status")
    assert status["weights_version"] == STEPS - 1 or status["weights_version"] == STEPS
    sample = loop.get(f"{loop.control}/v1/runs/{run}/samples")["samples"][0]
    assert len(sample["responses"]) == len(sample["rewards"]) == SIZE
    from transformers import AutoModelForImageTextToText

    aligned = AutoModelForImageTextToText.from_pretrained(snapshot["final"])
    base = AutoModelForImageTextToText.from_pretrained(loop.model)
    changed = [
        name
        for (name, new), old in zip(aligned.named_parameters(), base.parameters(), strict=True)
        if not new.equal(old)
    ]
    assert changed
    assert not any("vision" in name for name in changed)


def test_each_group_has_one_trace_from_prompt_to_gradient(loop: Loop) -> None:
    run = loop.create("traced", steps=2)
    loop.wait(run, finished)
    points = loop.get(f"{loop.control}/v1/runs/{run}/metrics")["points"]
    applied = {group for point in points for group in point["applied"]}

    def trained() -> dict[str, Received]:
        return {
            span.attributes["mor.group"]: span
            for span in loop.collector.named("group")
            if span.attributes["mor.run"] == run and span.attributes["mor.outcome"] == "trained"
        }

    deadline = time.monotonic() + 30
    while trained().keys() != applied:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)  # every process sends its spans within 0.2 s
    spans = {span.id: span for span in loop.collector.spans}
    answered = {span.parent: span for span in loop.collector.named("answer")}
    for root in trained().values():
        trace = loop.collector.in_trace(root.trace)
        assert (trace[0].id, root.service, root.parent) == (root.id, "mor-trainer-worker", "")
        below = {parent.name: [s for s in trace if s.parent == parent.id] for parent in trace}
        assert [(s.name, s.service) for s in below["group"]] == [
            ("sample", "mor-rollout"), ("score", "mor-router"), ("update", "mor-trainer-worker"),
        ]  # fmt: skip
        sample, score, update = below["group"]
        assert sample.ended <= score.ended <= update.began and update.ended <= root.ended
        assert {s.name for s in below["sample"]} in ({"encode", "generate"}, {"encode", "swap", "generate"})
        assert sorted(s.name for s in below["score"]) == ["call", "call", "fuse", "gate"]
        calls = {s.attributes["mor.client"]: s for s in below["score"] if s.name == "call"}
        for client in ("length", "vowels"):
            # groups that are scored together share one request, in the trace of the first of them
            requests = [calls[client].id, *calls[client].links]
            [answer] = [answered[call] for call in requests if call in answered]
            assert (answer.service, answer.attributes["mor.model"]) == ("mor-reward", client)
            assert answer.trace == spans[answer.parent].trace
        [step] = [spans[link] for link in update.links]
        assert (step.name, step.attributes["mor.step"]) == ("step", update.attributes["mor.step"])
        assert update.id not in step.links and root.id in step.links
        failed = {s.name: s.reason for s in trace if s.failed}
        assert set(failed) <= {"call"}, (
            failed
        )  # on a busy machine a client may be late; the other has half of the weight
    requested = {answered[call.id].trace for call in loop.collector.named("call") if call.id in answered}
    assert requested & {root.trace for root in trained().values()}


def test_killed_processes_lose_no_group(loop: Loop) -> None:
    run = loop.create("killed", steps=6)
    loop.wait(run, lambda snapshot: (snapshot["step"] or 0) >= 2)
    loop.processes.kill("worker")
    loop.processes.restart("worker")
    snapshot = loop.wait(run, finished)
    points = loop.get(f"{loop.control}/v1/runs/{run}/metrics")["points"]
    assert [point["step"] for point in points] == [1, 2, 3, 4, 5, 6]
    applied = [group for point in points for group in point["applied"]]
    assert len(applied) == len(set(applied)) == 6 * GROUPS
    assert snapshot["metrics"]["groups_dropped"] == 0


def test_the_policy_answers_chat_completions(loop: Loop) -> None:
    body = {"messages": [{"role": "user", "content": "What is in the picture?"}], "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"{loop.rollout}/v1/chat/completions", json=body, headers=ADMIN, timeout=60)
    assert answer.is_success, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 4


def test_the_router_refits_on_responses_of_the_policy_that_a_checker_labels(loop: Loop) -> None:
    objective = f"{loop.router}/v1/objectives/long"
    body = {"name": "long", "text": "Answer at length."}
    assert httpx.post(f"{loop.router}/v1/objectives", json=body, headers=ADMIN, timeout=30).is_success
    prompts = [json.loads(line) for line in loop.prompts.read_text().splitlines()][:16]
    rows = [{**prompt, "chosen": f"A long answer, {i}.", "rejected": "No."} for i, prompt in enumerate(prompts)]
    files = [("anchors", ("anchors.jsonl", "\n".join(map(json.dumps, rows)), "application/x-ndjson"))]
    for name in {row["images"][0] for row in rows}:
        files.append(("images", (name, (loop.prompts.parent / name).read_bytes(), "image/png")))
    uploaded = httpx.put(f"{objective}/anchors", files=files, headers=ADMIN, timeout=60)
    assert uploaded.is_success, uploaded.text
    checker = {"kind": "checker", "url": loop.scorer, "token": CLIENT_TOKEN}
    assert httpx.put(f"{objective}/labeller", json=checker, headers=ADMIN, timeout=30).is_success
    answer = httpx.post(f"{objective}/refit", headers=ADMIN, timeout=300)
    assert answer.is_success, answer.text
    gate = answer.json()
    assert gate["refitted"]["labelled"] >= 8
    assert gate["report"]["pairs"] > len(rows) / 2
    status = loop.get(f"{loop.rollout}/v1/status")
    assert gate["refitted"]["policy"] in ("base", f"{status['run']}:{status['weights_version']}")


def test_a_restarted_router_or_rollout_service_loses_no_group(loop: Loop) -> None:
    """A rolling upgrade. The next process takes over the groups of the ended one as soon as it has started.

    ``bench/containers.py`` measures how long training pauses. This is the last test, because the two services have
    other addresses afterwards.
    """
    run = loop.create("restarted", steps=8)
    for name, step in (("router", 2), ("rollout", 5)):
        loop.wait(run, lambda snapshot, step=step: (snapshot["step"] or 0) >= step)
        loop.processes.end(name)
        loop.processes.restart(name)
    loop.wait(run, finished)
    points = loop.get(f"{loop.control}/v1/runs/{run}/metrics")["points"]
    assert [point["step"] for point in points] == list(range(1, 9))
    applied = [group for point in points for group in point["applied"]]
    assert len(applied) == len(set(applied)) == 8 * GROUPS
    assert all(point["groups_dropped"] == 0 for point in points)
