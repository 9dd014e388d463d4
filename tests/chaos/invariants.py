"""Checks from outside of all that must hold after any faults: history, weights, event streams, processes."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.chaos.cluster import ADMIN, Cluster
from tests.chaos.observers import EventReader, Usage

_RATIO = 1e-3
"""Largest distance of a step's mean importance ratio from 1: engine and trainer compute in float32."""
KEPT_S = 120.0
"""Seconds after its end for which a run may have keys: run control reads late events for a minute."""
UNWANTED_ALERTS = {"group_dropped", "run_failed", "engine_disagrees", "non_finite"}
"""Alerts that ask for a person."""
_UNWANTED_LINES = re.compile(r"background work ended|Traceback|unexpected|never retrieved")
_ENDED = {0, -15, 143}
"""Exit statuses after SIGTERM."""
_FLAT_SHARE, _FLAT_MB, _FLAT_DESCRIPTORS = 0.05, 8.0, 4
"""Growth from the second to the last quarter of a soak that is noise."""
_BOUNDS = {"history, MB": math.inf, "file of the queue server, MB": 140.0}
"""Bounds of what grows: metrics stay, and the queue server rewrites its file when it has doubled, from 64 MB on."""


def check_history(cluster: Cluster, run: str, spec: dict[str, Any]) -> list[str]:
    """Check that a run has all its steps, each once, and applied each group once."""
    snapshot = cluster.get("control", f"/v1/runs/{run}")
    if snapshot["state"] != "finished":
        return [f"{run}: state {snapshot['state']} at step {snapshot['step']}, wanted finished: {snapshot['error']}"]
    points = cluster.get("control", f"/v1/runs/{run}/metrics?max_points={spec['steps']}")["points"]
    problems = []
    steps = [point["step"] for point in points]
    wanted = list(range(1, spec["steps"] + 1))
    if steps != wanted:
        missing, extra = sorted(set(wanted) - set(steps)), sorted((Counter(steps) - Counter(wanted)).elements())
        problems.append(
            f"{run}: the history lacks {len(missing)} steps, {missing[:5]}, and has {len(extra)} too often, {extra[:5]}"
        )
    applied = Counter(group for point in points for group in point["applied"])
    twice = [group for group, times in applied.items() if times > 1]
    if twice:
        problems.append(f"{run}: {len(twice)} groups were applied twice, such as {twice[0]}")
    if steps == wanted and len(applied) != len(wanted) * spec["groups_per_step"]:
        problems.append(f"{run}: {len(applied)} groups were applied, wanted {len(wanted) * spec['groups_per_step']}")
    dropped = max((point.get("groups_dropped") or 0 for point in points), default=0)
    if dropped:
        problems.append(f"{run}: {dropped} groups were dropped")
    off = [point["step"] for point in points if abs((point["importance_ratio_mean"] or 0) - 1) > _RATIO]
    if off:
        problems.append(f"{run}: the importance ratio is not 1 at steps {off}")
    return problems


def check_alerts(cluster: Cluster) -> tuple[list[str], dict[str, int]]:
    """Check that no alert asks for a person. Return the number of alerts by name as well."""
    alerts = cluster.get("control", "/v1/alerts?limit=1000")
    unwanted = [f"alert {a['name']} of {a['run']}: {a['reason']}" for a in alerts if a["name"] in UNWANTED_ALERTS]
    return unwanted, dict(Counter(alert["name"] for alert in alerts))


def check_stream(cluster: Cluster, reader: EventReader) -> list[str]:
    """Check that a reader who was cut off again and again has every event of the run once, in order."""
    whole = _whole_stream(cluster, reader.run)
    if reader.ids != whole:
        missing = [event for event in whole if event not in set(reader.ids)]
        return [
            f"{reader.run}: the event stream gave {len(reader.ids)} events, the history has {len(whole)}; "
            f"missing {missing[:5]}, order kept: {reader.ids == sorted(reader.ids, key=_number)}"
        ]
    return [f"the event stream of {reader.run} has a gap"] if "gap" in reader.kinds else []


def _whole_stream(cluster: Cluster, run: str) -> list[str]:
    """Read all events of a finished run at once."""
    last = cluster.get("control", f"/v1/runs/{run}")["cursor"]
    ids: list[str] = []
    url = f"{cluster.url('control')}/v1/runs/{run}/events"
    headers = {"Authorization": f"Bearer {ADMIN}", "Last-Event-ID": f"{run}/0"}
    with httpx.stream("GET", url, headers=headers, timeout=20) as reply:
        for line in reply.iter_lines():
            if line.startswith("id: "):
                ids.append(line.removeprefix("id: "))
                if _number(ids[-1]) >= _number(last):
                    break
    return ids


def _number(cursor: str) -> int:
    return int(cursor.rpartition("/")[2])


def check_twins(cluster: Cluster, run: str, twin: str) -> list[str]:
    """Check that a disturbed deterministic run and its undisturbed twin ended with the same bits."""
    one, other = (Path(cluster.get("control", f"/v1/runs/{r}")["final"]) / "model.safetensors" for r in (run, twin))
    return [] if one.read_bytes() == other.read_bytes() else [f"{run}: its weights differ from its twin's, {twin}"]


def check_keys(cluster: Cluster, ended: Sequence[str]) -> list[str]:
    """Check that the queue server keeps nothing of runs that ended a while ago."""
    problems = []
    for run in ended:
        left = [key.decode(errors="replace") for key in cluster.redis.scan_iter(match=f"mor:{{{run}}}:*", count=1000)]
        if left:
            problems.append(f"{run} ended over {KEPT_S:g} s ago and left {len(left)} keys, such as {left[0]}")
    return problems


def check_ready(cluster: Cluster) -> list[str]:
    """Check that every service is ready again."""
    problems = []
    for name in ("control", *cluster.engines, *cluster.routers, *cluster.clients):
        reply = cluster.http.get(f"{cluster.url(name)}/readyz")
        if not reply.is_success:
            problems.append(f"{name} is not ready after all faults: {reply.text[:300]}")
    return problems


def check_logs(cluster: Cluster) -> tuple[list[str], dict[str, int]]:
    """Check the logs for failures that nobody foresaw. Return the lines of level error, by message, as well."""
    problems, errors = [], Counter[str]()
    for name in cluster.services:
        if name == "queue":
            continue
        for line in cluster.log(name).splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": line, "level": "error" if "Traceback" in line else ""}
            if entry.get("level") in ("error", "critical"):
                errors[f"{name.partition('-')[0]}: {entry.get('event')}"[:160]] += 1
                if _UNWANTED_LINES.search(str(entry.get("event"))):
                    problems.append(f"{name} logged: {line[:600]}")
    return problems, dict(errors.most_common())


def check_end(statuses: dict[str, int | None], orphans: Sequence[str]) -> list[str]:
    """Check that every process ended after SIGTERM, and none is left."""
    wrong = {name: status for name, status in statuses.items() if status not in _ENDED}
    problems = [f"{name} ended with {status} after SIGTERM" for name, status in wrong.items()]
    return problems + [f"a process is left: {orphan}" for orphan in orphans]


def check_flat(usage: Usage) -> tuple[list[str], dict[str, dict[str, float]]]:
    """Check that memory, descriptors and disk do not grow. Return the medians of the quarters as well."""
    series = {f"memory of {name}, MB": values for name, values in usage.memory_mb.items()}
    series |= {"disk of runs, MB": usage.disk_mb}
    series |= dict(zip(_BOUNDS, (usage.history_mb, usage.queue_mb), strict=True))
    counts = {f"descriptors of {name}": [float(v) for v in values] for name, values in usage.descriptors.items()}
    problems, figures = [], {}
    for name, values in (series | counts).items():
        quarter = len(values) // 4
        if not quarter:
            continue
        early, late = _median(values[quarter : 2 * quarter]), _median(values[-quarter:])
        figures[name] = {"second_quarter": round(early, 1), "last_quarter": round(late, 1)}
        noise = _FLAT_DESCRIPTORS if name in counts else max(_FLAT_MB, _FLAT_SHARE * early)
        if late > _BOUNDS.get(name, early + noise):
            problems.append(f"{name}: from {early:.1f} in the second quarter to {late:.1f} in the last")
    return problems, figures


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
