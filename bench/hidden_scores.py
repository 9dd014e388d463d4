"""Simulation of sums of weighted scores under pairwise masks: what they hide of one client's scores from the router.

``python bench/hidden_scores.py`` writes ``bench/results/hidden-scores.json`` within seconds. The scores are simulated:
unit variance within a group, independent between clients, and a shift of training members that gives the membership
attack on single scores the chosen AUC. Masks and sums are computed as ``docs/hidden-scores.md`` describes.
"""

from __future__ import annotations

import argparse
import secrets
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, UInt
from machine import record
from numpy import ndarray
from numpy.random import Generator, Philox

_FRACTION_BITS = 24
"""Bits after the binary point of a fixed-point number modulo 2^64."""
_DRAWS = 200_000
"""Simulated members and non-members: the AUC is known to 0.002."""
_COPY = 0.91
"""Rank correlation of a copy with its model, after 2,000 queried groups of the demonstration's detail client."""
_WEIGHTS = {
    "0.9 and two of 0.05": (0.9, 0.05, 0.05),
    "0.7 and two of 0.15": (0.7, 0.15, 0.15),
    "0.5 and two of 0.25": (0.5, 0.25, 0.25),
    "3 equal": (1 / 3,) * 3,
    "12 equal": (1 / 12,) * 12,
    "100 equal": (1 / 100,) * 100,
}

Ring = UInt[ndarray, "clients responses"]


def encode(values: Float[ndarray, "clients responses"]) -> Ring:
    """Encode numbers as fixed-point numbers modulo 2^64."""
    return np.round(values * 2.0**_FRACTION_BITS).astype(np.int64).astype(np.uint64)


def decode(total: UInt[ndarray, " responses"]) -> Float[ndarray, " responses"]:
    """Return the number that a sum modulo 2^64 stands for."""
    return np.asarray(total.astype(np.int64) / 2.0**_FRACTION_BITS)


def masks(clients: int, responses: int) -> Ring:
    """Draw the clients' masks of one group: each pair shares a pad, which one adds and the other subtracts."""
    found = np.zeros((clients, responses), np.uint64)
    for one in range(clients):
        for other in range(one + 1, clients):
            pad = Generator(Philox(secrets.randbits(128))).integers(0, 2**64, responses, np.uint64)
            found[one] += pad
            found[other] -= pad
    return found


def largest_error(weights: tuple[float, ...], responses: int = 4096) -> float:
    """Return the largest difference between the unmasked sum and the sum of the weighted scores, logits."""
    scores = np.random.default_rng(0).normal(size=(len(weights), responses))
    parts = np.array(weights)[:, None] * scores
    total = (encode(parts) + masks(*parts.shape)).sum(axis=0)
    return float(np.abs(decode(total) - parts.sum(axis=0)).max())


def auc(members: Float[ndarray, " n"], others: Float[ndarray, " n"]) -> float:
    """Return the share of pairs (member, other) in which the member has the larger statistic."""
    ordered = np.sort(others)
    return float(np.searchsorted(ordered, members).mean() / len(ordered))


def through_sum(weights: tuple[float, ...], shift: float, copies: float) -> float:
    """Return the attack's AUC against the first client where the router sees sums only.

    ``copies``: correlation of the router's copies with the other clients' models, whose estimates it subtracts.
    """
    random = np.random.default_rng(1)
    own, others = weights[0], np.array(weights[1:])
    spread = float(np.sqrt(np.square(others).sum() * (1 - copies**2)))
    draws = own * random.normal(size=(2, _DRAWS)) + spread * random.normal(size=(2, _DRAWS))
    return auc(draws[0] + own * shift, draws[1])


def two_sums(weights: tuple[float, ...]) -> float:
    """Return the largest error with which two sums of one group, the second without the first client's share, give its
    scores, logits."""
    scores = np.random.default_rng(2).normal(size=(len(weights), 64))
    sums = []
    for own in (weights[0], 0.0):
        parts = np.array([own, *weights[1:]])[:, None] * scores
        sums.append(decode((encode(parts) + masks(*parts.shape)).sum(axis=0)))
    return float(np.abs((sums[0] - sums[1]) / weights[0] - scores[0]).max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--auc", type=float, default=0.77, help="AUC of the attack on single scores.")
    single = parser.parse_args().auc
    shift = 2**0.5 * NormalDist().inv_cdf(single)
    record(
        "hidden-scores",
        {
            "single": single,
            "copy": _COPY,
            "sums": {
                name: {
                    "auc": through_sum(weights, shift, 0.0),
                    "auc_with_copies": through_sum(weights, shift, _COPY),
                    "largest_error": largest_error(weights),
                    "error_of_two_sums": two_sums(weights),
                }
                for name, weights in _WEIGHTS.items()
            },
        },
    )


if __name__ == "__main__":
    main()
