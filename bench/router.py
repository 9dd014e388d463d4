"""Measurement of the router's own work: fit of a gate, its evaluation, routing and fusion, and whole batches of groups.

``python bench/router.py`` writes ``bench/results/router.json``. ``--against FOLDER`` measures another checkout in the
same run, such as one made by ``git worktree add FOLDER COMMIT``. Short rounds of the two alternate; ``ratio`` has the
quartiles, over pairs of rounds, of this checkout's time by the other's (below 1: this one is faster).

Scores are synthetic, and inputs are embedded without a model, each for the first time. ``live_batch`` is what a run
costs, with real HTTP clients, a real Valkey and a fitted gate; only CPU time of the router's process counts. The other
figures exclude clients, network and Redis.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from machine import commit, end_children_on_sigterm, record
from router_side import BATCH, BATCHES, CLIENTS, EVALUATED, FIT_CLIENTS, FIT_PAIRS, GROUP, RESPONSES

sys.path.append(str(Path(__file__).parent.parent))

from tests.conftest import Valkey
from tests.router.endpoints import Endpoints
from tests.router.planted import KINDS, specialist

ROOT = Path(__file__).parent.parent
_SIZES: dict[str, dict[str, int]] = {
    "fit": {"pairs": FIT_PAIRS, "clients": FIT_CLIENTS},
    "gate_evaluation": {"batch": EVALUATED, "clients": FIT_CLIENTS},
    "routing_and_fusion": {"clients": CLIENTS, "group": GROUP},
    "live_batch": {"batches_a_round": BATCHES, "groups": BATCH, "clients": len(KINDS), "group": RESPONSES},
}

Figures = dict[str, dict[str, float]]


class Side:
    """Process that measures one checkout."""

    def __init__(self, checkout: Path, redis_url: str, clients: Sequence[str]) -> None:
        packages = [*checkout.glob("packages/*"), *checkout.glob("services/*")]
        path = os.pathsep.join(map(str, [Path(__file__).parent, *packages]))
        command = [sys.executable, str(Path(__file__).with_name("router_side.py")), redis_url, *clients]
        environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def round(self) -> Figures:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        if not (line := self._process.stdout.readline()):
            raise SystemExit("the measuring process ended without figures; its reason is above")
        found: Figures = json.loads(line)
        return found

    def stop(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate(timeout=60)


@contextlib.contextmanager
def side(checkout: Path, endpoints: Endpoints) -> Iterator[Side]:
    """Start the process of one checkout, with a Valkey and clients of its own: clients keep the pictures they got."""
    clients = [endpoints.endpoint(kind, specialist(kind)).url for kind in KINDS]
    with tempfile.TemporaryDirectory(prefix="mor-router-") as folder:
        valkey = Valkey(Path(folder))
        running = Side(checkout, valkey.url, clients)
        try:
            yield running
        finally:
            running.stop()
            valkey.kill()


def medians(rounds: Sequence[Figures]) -> Figures:
    return {
        name: {figure: statistics.median(one[name][figure] for one in rounds) for figure in rounds[0][name]}
        for name in rounds[0]
    }


def measure(checkouts: Sequence[Path], count: int) -> list[list[Figures]]:
    """Measure ``count`` rounds of each checkout, in turns of alternating order."""
    endpoints = Endpoints()
    found: list[list[Figures]] = [[] for _ in checkouts]
    with contextlib.ExitStack() as stack:
        stack.callback(endpoints.stop)
        sides = [stack.enter_context(side(checkout, endpoints)) for checkout in checkouts]
        for number in range(count):
            turn = list(zip(sides, found, strict=True))
            for one, figures in turn if number % 2 else reversed(turn):
                figures.append(one.round())
    return found


def ratios(now: Sequence[Figures], before: Sequence[Figures]) -> dict[str, dict[str, list[float]]]:
    """Divide each round's times now by those of its turn before; return quartiles, the median in the middle."""
    pairs = list(zip(now, before, strict=True))
    return {
        name: {
            figure: statistics.quantiles([one[name][figure] / other[name][figure] for one, other in pairs], n=4)
            for figure in line
            if "cpu" in figure
        }
        for name, line in now[0].items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="another checkout, measured in the same run")
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each checkout, at least 2")
    options = parser.parse_args()
    end_children_on_sigterm()
    against: Path | None = options.against and options.against.resolve()
    if against is not None and not (against / "services" / "router").is_dir():
        raise SystemExit(f"{against} is no checkout of MoR; name the root folder of one")
    now, *others = measure([ROOT, *([against] if against else [])], max(2, options.rounds))
    figures: dict[str, Any] = {name: _SIZES[name] | line for name, line in medians(now).items()}
    for name, line in medians(now).items():
        print(name, {key: round(value, 4) for key, value in line.items()})
    if against is not None:
        [before] = others
        found = ratios(now, before)
        figures["against"] = {"commit": commit(against), **medians(before), "ratio": found}
        for name, compared in found.items():
            print(f"{name}, ratio to {against}", {key: [round(v, 3) for v in q] for key, q in compared.items()})
    print(record("router", {"rounds": options.rounds, **figures}))


if __name__ == "__main__":
    main()
