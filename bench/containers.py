"""Measurement of the start-up of the images' containers, and of restarts during a run.

``python bench/containers.py`` writes ``bench/results/containers.json``. The pods are those of the chart's tiny profile,
run by podman from the rendered manifests (``tests/containers``). It needs root, podman, ``make images`` and
``make test-helm``. The policy is a random model of under a million parameters, the client is a Python function.
"""

from __future__ import annotations

import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import record

sys.path.append(str(Path(__file__).parent.parent))

from tests.containers.podman import Podman, missing
from tests.containers.release import Release
from tests.helm import charts
from tests.tiny_models import build_tiny_vlm

_SERVICES = ("router", "control", "reward", "rollout")
_STARTS = 5
"""Restarts of each container, after its first start; the median is reported."""
_GROUPS = 4
"""Groups of a step: short steps, so that a pause of the training shows."""
_APART = 20
"""Steps between restarts: more than are already scored at the first restart."""


def starts(release: Release) -> dict[str, dict[str, float]]:
    """Measure the seconds from the start of a process until ``/readyz`` succeeds: the first time, and again."""
    found: dict[str, dict[str, float]] = {}
    for name in _SERVICES:
        release.start(name)
        first = release.ready(name)
        again = []
        for _ in range(_STARTS):
            release.restart(name)
            again.append(release.ready(name))
        found[name] = {
            "first_s": round(first, 2),
            "median_s": round(statistics.median(again), 2),
            "longest_s": round(max(again), 2),
        }
        print(name, found[name])
    return found


def two_steps(release: Release) -> float:
    """Run install jobs and `helm test`, whose run of two steps must finish; return the seconds of `helm test`."""
    release.job("reward-register", 600)
    release.job("apply", 600)
    (run,) = release.get("control", "/v1/runs")
    if (state := release.finished(run["id"], 600)["state"]) != "finished":
        raise SystemExit(f"the run of the values is {state}")
    began = time.monotonic()
    release.job("test", 600)
    return round(time.monotonic() - began, 1)


def restarts(release: Release) -> dict[str, Any]:
    """Restart, and kill, router and rollout service during a run; measure the seconds without a step after each."""
    events: list[tuple[str, str, Callable[[str], None]]] = [
        (f"{name}, {how}", name, act)
        for how, act in (("restarted", release.restart), ("killed", release.kill))
        for name in ("router", "rollout")
    ]
    steps = _APART * (len(events) + 1)
    spec = {
        "name": "restarts",
        "model": "/models/tiny",
        "prompts": "/data/prompts.jsonl",
        "steps": steps,
        "groups_per_step": _GROUPS,
        "group_size": 4,
        "sampling": {"max_tokens": 8},
        "optimiser": {"lr": 1e-9, "warmup_steps": 0},
    }
    run = release.call("POST", "control", "/v1/runs", spec)["id"]
    at = {}
    for index, (event, name, act) in enumerate(events, start=1):
        while (release.get("control", f"/v1/runs/{run}")["step"] or 0) < index * _APART:
            time.sleep(0.1)
        at[event] = time.time()
        act(name)
    snapshot = release.finished(run, 1800)
    points = release.get("control", f"/v1/runs/{run}/metrics")["points"]
    applied = [group for point in points for group in point["applied"]]
    gaps = [(after["at"], after["at"] - before["at"]) for before, after in pairwise(points)]
    ends = [*list(at.values())[1:], float("inf")]
    return {
        "state": snapshot["state"],
        "steps": steps,
        "groups": steps * _GROUPS,
        "groups_applied": len(applied),
        "groups_applied_once": len(set(applied)),
        "step_median_s": round(statistics.median(gap for _, gap in gaps), 2),
        "stall_s": {
            event: round(max(gap for when, gap in gaps if since <= when < end), 1)
            for (event, since), end in zip(at.items(), ends, strict=True)
        },
    }


def memory(release: Release) -> dict[str, float]:
    """Measure the peak resident memory of each container's process, in gigabytes."""
    found = {}
    for name in ("valkey", *_SERVICES, "worker"):
        status = Path(f"/proc/{release.pid(name)}/status").read_text()
        (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
        found[name] = round(int(peak) * 1024 / 1e9, 2)
    return found


def main() -> None:
    if reason := missing():
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        podman = Podman(folder)
        podman.up()
        try:
            release = Release(folder, podman, build_tiny_vlm(folder / "tiny"), tls=False)
            release.start("valkey")
            started = starts(release)
            release.start("worker")
            tested = two_steps(release)
            restarted = restarts(release)
            used = memory(release)
        finally:
            podman.down()
    cores, memory_gib = charts.requests(charts.render(charts.CHARTS / "mor", f"--values={charts.TINY}"))
    figures = {
        "start": started,
        "helm_test_s": tested,
        "restarts": restarted,
        "peak_memory_gb": used,
        "tiny_profile_requests": {"cores": cores, "memory_gib": memory_gib},
    }
    print(record("containers", figures))


if __name__ == "__main__":
    main()
