"""Report of a campaign: JSON with the machine named. ``bench/tables/faults.py`` makes the table of the guide."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import commit, describe

from tests.chaos import faults
from tests.chaos.campaign import SeedResult, Told
from tests.chaos.cluster import SETTINGS


def as_record(results: Sequence[SeedResult], seconds: float) -> dict[str, Any]:
    """Return the figures of a campaign."""
    told = [fault for result in results for fault in result.faults]
    by_kind: dict[str, list[Told]] = defaultdict(list)
    for fault in told:
        by_kind[fault.kind].append(fault)
    takeovers = [fault.takeover_s for fault in told if fault.takeover_s is not None]
    pauses = [fault.pause_s for fault in told if fault.pause_s is not None]
    return {
        "seeds": [result.seed for result in results],
        "faults": len(told),
        "minutes": round(seconds / 60, 1),
        "problems": sum(len(result.problems) for result in results),
        "runs": sum(len(result.runs) for result in results),
        "steps": sum(result.steps for result in results),
        "groups": sum(result.groups for result in results),
        "slowest_start_s": max((max(result.start_s.values(), default=0.0) for result in results), default=0.0),
        "longest_pause_s": max(pauses, default=None),
        "longest_takeover_s": max(takeovers, default=None),
        "alerts": dict(sum((Counter(result.alerts) for result in results), Counter())),
        "kinds": {kind: _figures(kind, found) for kind, found in sorted(by_kind.items())},
        "settings": SETTINGS,
        "results": [result.as_json() for result in results],
    }


def _figures(kind: str, found: Sequence[Told]) -> dict[str, Any]:
    pauses = [fault.pause_s for fault in found if fault.pause_s is not None]
    return {
        "faults": len(found),
        "median_pause_s": round(statistics.median(pauses), 1) if pauses else None,
        "longest_pause_s": max(pauses, default=None),
        "happens": " ".join((getattr(faults, kind.partition(" ")[0]).__doc__ or "").split()),
    }


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    measured = time.strftime("%Y-%m-%d", time.gmtime())
    found = {"measured": measured, "commit": commit(), "machine": describe(), **record}
    path.write_text(json.dumps(found, indent=1) + "\n")
