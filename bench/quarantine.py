"""Simulation of the test of usefulness: error rates for specialists, which should pass, and useless clients.

``python bench/quarantine.py`` writes ``bench/results/quarantine.json``. Inputs and differences are simulated:
each trial has five Gaussian clusters of inputs in 24 dimensions with a fifth of the anchors each. The distance between
two centres is about seven times (apart) or three and a half times (touching) the clusters' standard deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int
from machine import record
from mor_router.mathematics.sign_flip_test import LEAST_ANCHORS, LEAST_FOR_DOUBT, USELESS, p_value, region_cells
from numpy import ndarray
from numpy.random import Generator

_CLUSTERS = 5
"""Clusters of inputs."""
_DIMENSIONS = 24
"""Dimensions of the simulated embeddings."""
_SKILL = 0.69
"""Share of the pairs that a specialist ranks right in its cluster."""
_SIZES = (64, LEAST_FOR_DOUBT, LEAST_ANCHORS)
_SPREADS = {"apart": 1.0, "touching": 0.5}
"""Standard deviation of the clusters' centres, in standard deviations of the clusters."""

Differences = Callable[[Generator, Int[ndarray, " anchors"]], Float[ndarray, " anchors"]]
"""Function from the anchors' clusters to a client's standardised differences (chosen - rejected)."""


def _specialist(here: float, elsewhere: float) -> Differences:
    """Make a client that is right with probability ``here`` in the first cluster and ``elsewhere`` in the others."""
    shifts = NormalDist().inv_cdf(here), NormalDist().inv_cdf(elsewhere)

    def differences(random: Generator, cluster: Int[ndarray, " anchors"]) -> Float[ndarray, " anchors"]:
        return np.asarray(random.standard_normal(len(cluster)) + np.where(cluster == 0, *shifts))

    return differences


def _flipper(random: Generator, cluster: Int[ndarray, " anchors"]) -> Float[ndarray, " anchors"]:
    return np.asarray(_specialist(0.9, 0.9)(random, cluster) * random.choice((-1, 1), size=len(cluster)))


CLIENTS: dict[str, Differences] = {
    "right in one cluster of five, guesses elsewhere": _specialist(_SKILL, 0.5),
    "right in one cluster of five, misleads elsewhere": _specialist(_SKILL, 1 - _SKILL),
    "random": lambda random, cluster: random.standard_normal(len(cluster)),
    "inverts its scores at random": _flipper,
    "inverts its scores": _specialist(0.1, 0.1),
    "constant": lambda random, cluster: np.zeros(len(cluster)),
}


def inputs(
    random: Generator, anchors: int, spread: float
) -> tuple[Float[ndarray, "anchors features"], Int[ndarray, " anchors"]]:
    """Draw embeddings of the anchors, and the cluster of each."""
    centres = random.standard_normal((_CLUSTERS, _DIMENSIONS)) * spread
    cluster = np.arange(anchors) % _CLUSTERS
    return centres[cluster] + random.standard_normal((anchors, _DIMENSIONS)), cluster


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=300)
    trials: int = parser.parse_args().trials
    print(
        f"{'share of clients that fail the test, by number of anchors':60}" + "".join(f"{size:>8}" for size in _SIZES)
    )
    print(
        record("quarantine", {"trials": trials, "skill": _SKILL, "failed": {a: _failed(a, trials) for a in _SPREADS}})
    )


def _failed(arrangement: str, trials: int) -> dict[str, dict[str, float]]:
    """Compute the fraction of trials with p above the limit, by client and number of anchors."""
    counts = {name: dict.fromkeys(map(str, _SIZES), 0) for name in CLIENTS}
    for trial in range(trials):
        for size in _SIZES:
            random = np.random.default_rng((trial, size))
            features, cluster = inputs(random, size, _SPREADS[arrangement])
            cells = region_cells(features)
            for name, client in CLIENTS.items():
                counts[name][str(size)] += p_value(cells, client(random, cluster)) > USELESS
    for name, sizes in counts.items():
        print(f"{arrangement:9} {name:50}" + "".join(f"{100 * count / trials:6.1f} %" for count in sizes.values()))
    return {name: {size: count / trials for size, count in sizes.items()} for name, sizes in counts.items()}


if __name__ == "__main__":
    main()
