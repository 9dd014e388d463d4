"""The router's own work in one checkout, measured round by round: ``bench/router.py`` runs one such process for each.

Each line on the standard input asks for a round; its figures come back as a line of JSON. Times are CPU times of the
process, on one thread, so that a busy machine does not change them. The imported router is that of ``PYTHONPATH``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from cryptography.fernet import Fernet
from mor_core.auth import hash_token
from mor_core.wire import Message, RewardItem
from mor_router.app import create_app
from mor_router.config import RouterSettings
from mor_router.embedding import GateInput, build_embedder
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import ObjectiveWeights, fuse
from mor_router.mathematics.mixture import Mixture, fit_mixture
from mor_router.rewarding import pipeline
from numpy import ndarray
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parent.parent))  # both checkouts meet the same traffic

from tests.router.endpoints import TOKEN
from tests.router.planted import KINDS, jsonl, picture, question, rows

FIT_PAIRS, FIT_CLIENTS, FEATURES = 5000, 64, 352
EVALUATED, CLIENTS, GROUP, GROUPS = 64, 8, 8, 100
BATCHES, BATCH, RESPONSES = 10, 8, 4
_WARM_UP = 2
"""Batches at the start of a round that are not measured: connections are opened again after the pause."""
_ADMIN = "the-bench-is-admin-here"
_clock = time.process_time
_GroupBatch: Any = vars(pipeline)["GroupBatch"]
"""Looked up at run time, because other checkouts define it in another module."""


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
    started = _clock()
    names = [f"client-{k}" for k in range(clients)]
    mixture, found = fit_mixture(names, inputs, scores, entropy_floor=0.1)
    return mixture, _clock() - started, found.held_out_accuracy


def best(work: Callable[[], object], rounds: int = 50) -> float:
    """Return the minimum seconds of several rounds, the least disturbed one."""
    times = []
    for _ in range(rounds):
        started = _clock()
        work()
        times.append(_clock() - started)
    return min(times)


def evaluation(mixture: Mixture) -> float:
    """Measure the milliseconds for weights and slopes of a group, in a batch."""
    inputs = planted(EVALUATED, 1)[0]
    seconds = best(lambda: (mixture.weights(inputs, mixture.clients), mixture.slopes(inputs)))
    return 1e3 * seconds / EVALUATED


async def mathematics() -> list[float]:
    """Measure the milliseconds from a group's scores to its reward, with embedding and gate, group by group."""
    mixture, _, _ = fitted(64, CLIENTS)
    embedder = build_embedder(None, None, GROUPS)
    random = np.random.default_rng(1)
    units = dict(zip(mixture.clients, mixture.standardisers, strict=True))
    times = []
    for index in range(GROUPS):
        raw = {name: random.normal(size=GROUP).tolist() for name in mixture.clients}
        asked = GateInput((Message(role="user", content=f"Question {index}: how many bars has the chart?"),), {})
        started = _clock()
        inputs = await embedder.inputs([asked])
        weights, slopes = mixture.weights(inputs, mixture.clients)[0], mixture.slopes(inputs)[0]
        weights_of_input = ObjectiveWeights(
            1.0,
            dict(zip(mixture.clients, weights.tolist(), strict=True)),
            dict(zip(mixture.clients, slopes.tolist(), strict=True)),
        )
        fuse(raw, objective_weights=[weights_of_input], standardisers=[units], fusion=Weighted(), quorum=0.5)
        times.append(1e3 * (_clock() - started))
    return times


def live_batch(number: int) -> Any:
    """Make a batch of groups of a run on new questions, each with one response twice."""
    random = np.random.default_rng(number)
    items, images = [], dict[str, bytes]()
    for index in range(number * BATCH, (number + 1) * BATCH):
        kind = list(KINDS)[index % len(KINDS)]
        messages, shown = question(kind, 5000 + index)
        images |= dict.fromkeys(shown, picture(kind, 5000 + index))
        texts = [f"answer {value}" for value in random.normal(0, 1.2, size=RESPONSES - 1).round(3)]
        responses = (*texts, texts[0])
        item = {"item_id": f"g{index}", "messages": messages, "responses": responses, "objective": "helpful"}
        items.append(RewardItem.model_validate(item))
    of_run: dict[str, Any] = {"policies": {item.item_id: "run-1:7" for item in items}}
    if "policies" not in {field.name for field in dataclasses.fields(_GroupBatch)}:  # a checkout older than audits
        of_run = {}
    return _GroupBatch(items, images, **of_run)


class LiveRouter:
    """Router with a fitted gate; its clients and its Valkey are other processes."""

    def __init__(self, router: Any) -> None:
        self._router = router
        self._next = 0

    async def batch_ms(self) -> list[float]:
        """Measure the milliseconds of each batch, from its groups to their rewards."""
        batches = [live_batch(self._next + number) for number in range(_WARM_UP + BATCHES)]
        self._next += len(batches)
        times = []
        for batch in batches:
            started = _clock()
            outcomes, _ = await self._router.rewarding.pipeline.reward(batch, 30)
            times.append(1e3 * (_clock() - started))
            assert all(hasattr(outcome.result, "rewards") for outcome in outcomes), outcomes
        return times[_WARM_UP:]


@contextlib.asynccontextmanager
async def live_router(redis_url: str, clients: Sequence[str]) -> AsyncIterator[LiveRouter]:
    """Start a router as a run meets it, with default shares of honeypots and audits, and fit its gate."""
    with tempfile.TemporaryDirectory(prefix="mor-router-") as name:
        tokens = Path(name) / "tokens.json"
        tokens.write_text(json.dumps([{"name": "bench", "scope": "admin", "sha256": hash_token(_ADMIN)}]))
        settings = RouterSettings(
            redis_url=SecretStr(redis_url),
            tokens_file=tokens,
            secret_key=SecretStr(Fernet.generate_key().decode()),
            audit_log=Path(name) / "audit.jsonl",
            allow_loopback=True,
            worker=False,
        )
        app = create_app(settings)
        headers = {"Authorization": f"Bearer {_ADMIN}"}
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://router", headers=headers, timeout=120) as http,
        ):
            for url in clients:
                body = {"name": url.rsplit("/", 1)[-1], "url": url, "domains": "any", "token": TOKEN}
                (await http.post("/v1/clients", json={**body, "state": "probation"})).raise_for_status()
            objective = {"name": "helpful", "text": "Answer what was asked."}
            (await http.post("/v1/objectives", json=objective)).raise_for_status()
            ndjson = {"Content-Type": "application/x-ndjson"}
            uploaded = await http.put("/v1/objectives/helpful/anchors", content=jsonl(rows(63)), headers=ndjson)
            uploaded.raise_for_status()
            (await http.post("/v1/objectives/helpful/fit")).raise_for_status()
            yield LiveRouter(app.state.router)


async def figures(live: LiveRouter) -> dict[str, dict[str, float]]:
    """Measure one round."""
    mixture, seconds, accuracy = fitted(FIT_PAIRS, FIT_CLIENTS)
    groups, batches = await mathematics(), await live.batch_ms()
    return {
        "fit": {"cpu_seconds": seconds, "held_out_accuracy": accuracy},
        "gate_evaluation": {"cpu_ms_per_group": evaluation(mixture)},
        "routing_and_fusion": {
            "p50_cpu_ms_per_group": statistics.median(groups),
            "p99_cpu_ms_per_group": float(np.quantile(groups, 0.99)),
        },
        "live_batch": {
            "p50_cpu_ms_per_batch": statistics.median(batches),
            "mean_cpu_ms_per_batch": statistics.fmean(batches),
        },
    }


async def rounds(redis_url: str, clients: Sequence[str]) -> None:
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # logs are no answers
        fitted(64, 3)  # imports and first calls
        async with live_router(redis_url, clients) as live:
            while await asyncio.to_thread(sys.stdin.readline):
                print(json.dumps(await figures(live)), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("redis_url")
    parser.add_argument("clients", nargs="+", metavar="client_url")
    options = parser.parse_args()
    torch.set_num_threads(1)
    asyncio.run(rounds(options.redis_url, options.clients))


if __name__ == "__main__":
    main()
