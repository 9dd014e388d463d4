"""Many simulated clients: accuracy if only those with the most weight are called, by their number."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.mixture import Mixture
from numpy import ndarray

from quality.arms import MixtureOfRewards
from quality.evidence import ExperimentData, Table
from quality.group_scores import AnchorPairs, GroupScores, Rewards, agreement

CLIENTS = (10, 30, 100, 300, 1000)
"""Numbers of clients."""
CALLED = 8
"""Clients that are called for a group."""
_ANCHORS = 256
"""Anchors of the fit: enough to separate a thousand clients."""
_BATCH = 64
"""Groups for which the gate is timed at once."""


def scaling(evidence: ExperimentData, counts: Sequence[int] = CLIENTS) -> Table:
    """Add clients with the population's scores plus noise of the size of their score differences."""
    anchors = evidence.drawn(_ANCHORS, draws=1)[0]
    rows = np.random.default_rng(0).permutation(len(evidence.held_out))[:1000]
    live = evidence.held_out.take(np.sort(rows))
    found: Table = {}
    for count in counts:
        anchor_scores, live_scores = _with_copies(anchors.pairs, count, 1), _with_copies(live, count, 2)
        mixture = MixtureOfRewards().mixture(AnchorPairs(anchor_scores))
        evidence_of_clients, seconds = _gate_evidence(mixture, live_scores.inputs)
        calls = min(CALLED, count)
        kept = np.argsort(-evidence_of_clients, axis=1, kind="stable")[:, :calls]
        few = np.zeros_like(evidence_of_clients)
        np.put_along_axis(few, kept, np.take_along_axis(evidence_of_clients, kept, axis=1), axis=1)
        units = np.stack([unit(live_scores.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
        found[str(count)] = {
            "calls": calls,
            "called": _accuracy(few, units),
            "all": _accuracy(evidence_of_clients, units),
            "gate ms": 1e3 * seconds,
        }
    return found


def _with_copies(groups: GroupScores, count: int, seed: int) -> GroupScores:
    """Add noisy copies of the clients up to ``count``; the first clients are the population itself."""
    random = np.random.default_rng(seed)
    known = groups.scores.shape[1]
    spread = np.median(np.abs(groups.scores[..., 0] - groups.scores[..., 1]), axis=0)
    copies = [groups.scores] + [
        groups.scores[:, [k % known]] + spread[k % known] * random.normal(size=(len(groups), 1, groups.scores.shape[2]))
        for k in range(known, count)
    ]
    return groups.with_scores(np.concatenate(copies, axis=1)[:, :count])


def _gate_evidence(
    mixture: Mixture, inputs: Float[ndarray, "groups features"]
) -> tuple[Float[ndarray, "groups clients"], float]:
    """Return the evidence of every client, and the seconds that the gate takes for a group in a batch of 64."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        mixture.weights(inputs[:_BATCH], mixture.clients)
        times.append((time.perf_counter() - started) / _BATCH)
    return mixture.evidence(inputs), min(times)


def _accuracy(weights: Float[ndarray, "groups clients"], units: Float[ndarray, "groups clients size"]) -> float:
    rewards: Rewards = np.einsum("nk,nkg->ng", weights, units)
    return 100 * float(agreement(rewards).mean())
