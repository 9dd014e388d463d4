"""Checks of a run over HTTP, as its users see it, and the groups that it should train on."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from mor_trainer.groups.ledger import Ledger

from tests.trainer.kit import Processes, make_spec
from tests.trainer.records import order_of
from tests.trainer.stages import until


def create(processes: Processes, **fields: Any) -> str:
    with processes.client() as http:
        reply = http.post("/v1/runs", json=json.loads(make_spec(**fields).model_dump_json()))
        assert reply.status_code == 202, reply.text
        return str(reply.json()["id"])


def snapshot(processes: Processes, run: str) -> dict[str, Any]:
    with processes.client("viewer") as http:
        return dict(http.get(f"/v1/runs/{run}").raise_for_status().json())


def finish(processes: Processes, run: str, timeout_s: float = 300) -> dict[str, Any]:
    def over() -> bool:
        found = snapshot(processes, run)
        assert found["state"] not in ("failed", "stopped"), (found["error"], processes.log("work"))
        return bool(found["state"] == "finished")

    until(over, timeout_s, f"run {run} finished")
    return snapshot(processes, run)


def points(processes: Processes, run: str) -> list[dict[str, Any]]:
    with processes.client("viewer") as http:
        return list(http.get(f"/v1/runs/{run}/metrics").raise_for_status().json()["points"])


def alerts(processes: Processes, run: str) -> list[dict[str, Any]]:
    """Read the alerts from the beginning of the event stream."""
    found: list[dict[str, Any]] = []
    headers = {"Last-Event-ID": f"{run}/0"}
    with processes.client("viewer") as http, http.stream("GET", f"/v1/runs/{run}/events", headers=headers) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: "):
                event = json.loads(line.removeprefix("data: "))
                if event["kind"] == "alert":
                    found.append(event["data"])
                if event["kind"] == "state" and event["data"].get("state") == "finished":
                    return found
    raise AssertionError("the stream ended before the run")


def applied_once(history: list[dict[str, Any]]) -> None:
    """Assert that every step is there once and no group was applied twice."""
    assert [point["step"] for point in history] == list(range(1, len(history) + 1))
    counts = Counter(group for point in history for group in point["applied"])
    assert set(counts.values()) == {1}


def groups_in_order(run: str, count: int) -> list[str]:
    """Return the ids of a run's groups in the order in which prompts are drawn from a file of twelve."""
    ledger: Ledger[None] = Ledger(run, order_of(12), 0, 1)
    return [ledger.group_id(number) for number in range(count)]


def is_flat(group: str) -> bool:
    return int(group[:4], 16) % 3 == 0


def expect_dynamic_sampling(history: list[dict[str, Any]], run: str) -> None:
    """Assert that each step took the next four groups with signal and skipped those between them."""
    order = groups_in_order(run, 120)
    with_signal = [group for group in order if not is_flat(group)]
    assert [point["applied"] for point in history] == [with_signal[4 * s : 4 * s + 4] for s in range(len(history))]
    last = order.index(history[-1]["applied"][-1])
    assert history[-1]["groups_skipped"] == sum(map(is_flat, order[:last]))
    assert history[-1]["groups_applied"] == 4 * len(history)
