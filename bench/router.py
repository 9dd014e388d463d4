"""Measurement of the router's own work: fit of a gate, its evaluation, routing and fusion of a group.

``python bench/router.py`` writes ``bench/results/router.json``. Scores are synthetic; clients, network and Redis are
excluded; inputs are embedded without a model, each for the first time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
import torch
from machine import record
from mor_core.wire import Message
from mor_router.embedding import GateInput, build_embedder
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import ObjectiveWeights, fuse
from mor_router.mathematics.mixture import Mixture, fit_mixture
from numpy import ndarray

FIT_PAIRS, FIT_CLIENTS, FEATURES = 5000, 64, 352
BATCH, CLIENTS, GROUP, GROUPS = 64, 8, 8, 2000


def planted(pairs: int, clients: int) -> tuple[ndarray, ndarray]:
    """Make inputs in eight clusters, and scores of clients that know one cluster each."""
    random = np.random.default_rng(0)
    domain = random.integers(0, 8, size=pairs)
    inputs = 0.1 * random.normal(size=(pairs, FEATURES))
    inputs[np.arange(pairs), domain] += 1
    quality = random.normal(size=(pairs, 1, 2))
    quality[..., ::-1].sort(axis=2)
    known = domain[:, None] == np.arange(clients) % 8
    scores = np.where(known[..., None], quality, 0) + random.normal(size=(pairs, clients, 2))
    return inputs, scores


def fitted(pairs: int, clients: int) -> tuple[Mixture, float, float]:
    """Fit a mixture; return it, the seconds of the fit, and its held-out accuracy."""
    inputs, scores = planted(pairs, clients)
    started = time.perf_counter()
    names = [f"client-{k}" for k in range(clients)]
    mixture, found = fit_mixture(names, inputs, scores, entropy_floor=0.1)
    return mixture, time.perf_counter() - started, found.held_out_accuracy


def best(work: Callable[[], object], rounds: int = 50) -> float:
    """Return the minimum seconds of several rounds, the least disturbed one."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def evaluation(mixture: Mixture) -> float:
    """Measure the milliseconds for weights and slopes of a group, in a batch."""
    inputs = planted(BATCH, 1)[0]
    seconds = best(lambda: (mixture.weights(inputs, mixture.clients), mixture.slopes(inputs)))
    return 1e3 * seconds / BATCH


def overhead() -> dict[str, float]:
    """Measure the milliseconds from a group's scores to its reward, with embedding and gate: median and p99."""
    mixture, _, _ = fitted(64, CLIENTS)
    embedder = build_embedder(None, None, GROUPS)
    random = np.random.default_rng(1)
    units = dict(zip(mixture.clients, mixture.standardisers, strict=True))
    times = []

    async def one(index: int) -> None:
        raw = {name: random.normal(size=GROUP).tolist() for name in mixture.clients}
        question = GateInput((Message(role="user", content=f"Question {index}: how many bars has the chart?"),), {})
        started = time.perf_counter()
        inputs = await embedder.inputs([question])
        weights, slopes = mixture.weights(inputs, mixture.clients)[0], mixture.slopes(inputs)[0]
        weights_of_input = ObjectiveWeights(
            1.0,
            dict(zip(mixture.clients, weights.tolist(), strict=True)),
            dict(zip(mixture.clients, slopes.tolist(), strict=True)),
        )
        fuse(raw, objective_weights=[weights_of_input], standardisers=[units], fusion=Weighted(), quorum=0.5)
        times.append(1e3 * (time.perf_counter() - started))

    async def run() -> None:
        for index in range(GROUPS):
            await one(index)

    asyncio.run(run())
    return {"p50_ms": float(np.quantile(times, 0.5)), "p99_ms": float(np.quantile(times, 0.99))}


def main() -> None:
    torch.set_num_threads(1)
    fitted(64, 3)  # imports and first calls
    mixture, seconds, accuracy = fitted(FIT_PAIRS, FIT_CLIENTS)
    figures = {
        "fit": {"pairs": FIT_PAIRS, "clients": FIT_CLIENTS, "seconds": seconds, "held_out_accuracy": accuracy},
        "gate_evaluation": {"batch": BATCH, "clients": FIT_CLIENTS, "ms_per_group": evaluation(mixture)},
        "routing_and_fusion": {"clients": CLIENTS, "group": GROUP, **overhead()},
    }
    for name, line in figures.items():
        print(name, {key: round(value, 4) for key, value in line.items()})
    print(record("router", figures))


if __name__ == "__main__":
    main()
