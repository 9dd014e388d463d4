"""Many clients: what calling only the most trusted costs, as their number grows. Simulated."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.mixture import Mixture
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.evidence import Evidence, Table
from quality.scored import Anchors, Groups, Rewards, agreement

CLIENTS = (10, 30, 100, 300, 1000)
CALLED = 8
_ANCHORS = 256
_BATCH = 64


def growth(evidence: Evidence, counts: Sequence[int] = CLIENTS) -> Table:
    """Further clients say what the population's own say, with noise on top as large as what they tell apart by."""
    anchors = evidence.drawn(_ANCHORS, draws=1)[0]
    rows = np.random.default_rng(0).permutation(len(evidence.held_out))[:1000]
    live = evidence.held_out.take(np.sort(rows))
    found: Table = {}
    for count in counts:
        told, asked = _grown(anchors.pairs, count, 1), _grown(live, count, 2)
        mixture = MixtureOfRewards().mixture(Anchors(told))
        trust, seconds = _opinion(mixture, asked.inputs)
        calls = min(CALLED, count)
        kept = np.argsort(-trust, axis=1, kind="stable")[:, :calls]
        few = np.zeros_like(trust)
        np.put_along_axis(few, kept, np.take_along_axis(trust, kept, axis=1), axis=1)
        units = np.stack([unit(asked.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
        found[str(count)] = {
            "calls": calls,
            "called": _accuracy(few, units),
            "all": _accuracy(trust, units),
            "gate ms": 1e3 * seconds,
        }
    return found


def _grown(groups: Groups, count: int, seed: int) -> Groups:
    """The first are the population itself."""
    random = np.random.default_rng(seed)
    known = groups.scores.shape[1]
    spread = np.median(np.abs(groups.scores[..., 0] - groups.scores[..., 1]), axis=0)
    copies = [groups.scores] + [
        groups.scores[:, [k % known]] + spread[k % known] * random.normal(size=(len(groups), 1, groups.scores.shape[2]))
        for k in range(known, count)
    ]
    return groups.said(np.concatenate(copies, axis=1)[:, :count])


def _opinion(
    mixture: Mixture, inputs: Float[ndarray, "groups features"]
) -> tuple[Float[ndarray, "groups clients"], float]:
    """Evidence of every client, and the seconds that the gate takes for a group in a batch of 64."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        mixture.weights(inputs[:_BATCH], mixture.clients)
        times.append((time.perf_counter() - started) / _BATCH)
    return mixture.evidence(inputs), min(times)


def _accuracy(trust: Float[ndarray, "groups clients"], units: Float[ndarray, "groups clients size"]) -> float:
    rewards: Rewards = np.einsum("nk,nkg->ng", trust, units)
    return 100 * float(agreement(rewards).mean())
