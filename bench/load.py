"""Load on router and reward service: ``python bench/load.py`` writes ``bench/results/load.json``.

Parts: ``router`` (groups a second, time of a call and cores used by number of clients and replicas, with pictures;
calls in flight double until the slowest of a hundred takes over a second), ``pool`` (CPU time of a call, by the
number of calls that wait for the same client) and ``classifier`` (responses a second of a text classifier, beside
vLLM). Router, reward services, Valkey and caller share this machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from load import classifier, plots, pool, router_load
from machine import RESULTS, commit, end_children_on_sigterm, record

Figures = dict[str, Any]


def _router(options: Namespace) -> Figures:
    cells = []
    for replicas in options.replicas:
        for clients in options.clients:
            cells.append(router_load.measure(clients, replicas, options.seconds, options.most))
            best = cells[-1]["best"]
            rate = f"{best['per_second'] * router_load.GROUPS:.0f} groups/s" if best else "over its bound at once"
            print(f"{clients} clients, {replicas} replicas: {rate}", flush=True)
    sizes: Figures = {"groups": router_load.GROUPS, "responses": router_load.RESPONSES, "bound_s": router_load.BOUND_S}
    found = {**sizes, "cells": cells}
    plots.draw(found, RESULTS / "load.svg")
    return found


def _pool(options: Namespace) -> Figures:
    return asyncio.run(pool.measure(options.waiting))


def _classifier(_: Namespace) -> Figures:
    return classifier.measure()


PARTS: dict[str, Callable[[Namespace], Figures]] = {"router": _router, "pool": _pool, "classifier": _classifier}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=list(PARTS))
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 8, 64, 256])
    parser.add_argument("--replicas", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--waiting", nargs="+", type=int, default=[8, 64, 512, 4096], help="calls at once")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of a step of the load")
    parser.add_argument("--most", type=int, default=64, help="most calls in flight")
    options = parser.parse_args()
    end_children_on_sigterm()
    file = RESULTS / "load.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    parts = {part: known[part] for part in PARTS if part in known}
    for part in options.parts:
        parts[part] = {**PARTS[part](options), "commit": commit()}
        print(record("load", parts))


if __name__ == "__main__":
    main()
