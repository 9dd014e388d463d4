"""Measurement of the demonstration: wall time, peak memory of all its processes, step and swap times, accuracy.

``python bench/demo.py [--seeds 3]`` writes ``bench/results/demo-PRESET.json``, with ``--dp-epsilon 3``, of clients that
train with differential privacy, ``demo-PRESET-dp3.json``. For each seed it runs, on the
same data and models, the aligned run and its two controls: the same run with shuffled rewards, and supervised tuning on
the pooled chosen answers of all clients. The state folder stores the result of each run, so an interrupted benchmark
resumes; remove the folder to measure again. Downloads are not counted: run `make demo` once before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from machine import end_children_on_sigterm, record
from peak_memory import PeakMemory
from three_domains import report

_KEPT = ("accuracy", "client_rewards", "gate_weights", "run", "phase_seconds")
"""Keys of a report that are figures, not paths."""


def measured(state: Path, preset: str, seed: int, arm: str, private: list[str]) -> dict[str, Any]:
    """Return the figures of one arm on one seed: stored ones, or new ones. ``private``: options of private training."""
    kept = state / f"bench-{arm}.json"
    if not kept.is_file():
        figures = demonstration(state, "--preset", preset, "--seed", str(seed), "--arm", arm, *private)
        report.write(kept, figures)
    return dict(json.loads(kept.read_text()))


def demonstration(state: Path, *options: str) -> dict[str, Any]:
    """Run a demonstration below ``state``; return its report, with wall time and peak memory."""
    from_nothing = not state.exists()
    begun = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "three_domains.demo", "--state", str(state), *options])
    memory = PeakMemory(process.pid)
    try:
        status = process.wait()
    finally:
        memory.stop()
        process.terminate()
        process.wait()
    if status:
        raise SystemExit(f"the demonstration ended with status {status}")
    found = json.loads((state / "report.json").read_text())
    kept = {name: found[name] for name in _KEPT if name in found}
    kept.get("run", {}).pop("checkpoint", None)
    cost = {"wall_seconds": time.monotonic() - begun, "peak_memory_gb": memory.bytes / 1e9}
    return kept | cost | {"from_nothing": from_nothing}


def gains(reports: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Compute the gain in gold accuracy, points: mean, minimum and maximum over seeds, by domain and over all."""
    by_domain: dict[str, list[float]] = {}
    for one in reports:
        before, after = one["accuracy"]["base"], one["accuracy"]["aligned"]
        found = {domain: 100 * (after[domain]["accuracy"] - before[domain]["accuracy"]) for domain in before}
        for domain, gain in {**found, "mean": statistics.fmean(found.values())}.items():
            by_domain.setdefault(domain, []).append(gain)
    return {
        domain: {"mean": statistics.fmean(values), "low": min(values), "high": max(values)}
        for domain, values in by_domain.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--preset", default="default")
    parser.add_argument("--state", type=Path, default=Path(".mor/bench"))
    parser.add_argument("--arms", nargs="+", default=["aligned", "shuffled", "supervised"])
    parser.add_argument("--dp-epsilon", type=float, help="ε of the clients' training with differential privacy")
    options = parser.parse_args()
    private = [] if options.dp_epsilon is None else ["--dp-epsilon", str(options.dp_epsilon)]
    name = "" if options.dp_epsilon is None else f"-dp{options.dp_epsilon:g}"
    end_children_on_sigterm()
    reports: dict[str, list[dict[str, Any]]] = {}
    for arm in options.arms:
        for seed in range(options.seeds):
            state = options.state / f"{options.preset}-{seed}{name}"
            reports.setdefault(arm, []).append(measured(state, options.preset, seed, arm, private))
            figures = {name: {"gain_points": gains(done), "runs": done} for name, done in reports.items()}
            print(record(f"demo-{options.preset}{name}", {"arms": figures}))


if __name__ == "__main__":
    main()
