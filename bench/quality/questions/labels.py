"""Worth of a label: accuracy by their number, with anchors that the router proposes and with drawn ones."""

from __future__ import annotations

from itertools import repeat

import numpy as np
from mor_router.mathematics.anchor_proposal import ProposalWeights, ScoredPairs, propose
from mor_router.mathematics.mixture import Mixture, fit_mixture

from quality.arms import MixtureOfRewards
from quality.arms.mixture import ENTROPY_FLOOR
from quality.evidence import ExperimentData, Table, even
from quality.group_scores import AnchorPairs, GroupScores, agreement
from quality.ranking import drawn_rows

COUNTS = (32, 64, 128, 192)
"""Numbers of labels."""
_FIRST = 16
"""Labels of drawn anchors, with which the first proposal is made."""
_ROUND = 16
"""Labels between two fits."""
_ASIDE = 0.25
"""Part of the pool that is kept aside."""
_WAYS = {
    "drawn": None,
    "chosen": ProposalWeights(),
    "chosen by information alone": ProposalWeights(disagreement=0.0, coverage=0.0),
}


def labels(evidence: ExperimentData, counts: tuple[int, ...] = COUNTS) -> Table:
    """Compute MoR's accuracy by number of labels, percent, on the held-out pairs and on anchors kept aside.

    The latter are a random part of the pool that no way may label: on them ways may be compared and chosen.
    """
    draws = max(3, evidence.draws // 2)
    columns = (evidence.pool, evidence.held_out, evidence.domains, counts)
    found = list(evidence.each(_compared, range(draws), *map(repeat, columns)))
    return {
        way: {
            str(count): {
                on: [levels[way][str(count)][on] for levels in found] for on in ("held-out pairs", "anchors aside")
            }
            for count in counts
        }
        for way in _WAYS
    }


def _compared(
    seed: int, pool: AnchorPairs, held_out: GroupScores, domains: tuple[str, ...], counts: tuple[int, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    order = np.random.default_rng(seed).permutation(len(pool.pairs))
    aside = pool.pairs.take(order[: round(_ASIDE * len(order))])
    pool = AnchorPairs(pool.pairs.take(np.sort(order[round(_ASIDE * len(order)) :])))
    rows = {
        way: chosen_in_turn(pool, domains, seed, counts, weights)
        if weights
        else drawn_in_turn(pool, domains, seed, counts)
        for way, weights in _WAYS.items()
    }
    found: dict[str, dict[str, dict[str, float]]] = {}
    for way, labelled in rows.items():
        for count in counts:
            score = MixtureOfRewards().fit(AnchorPairs(pool.pairs.take(labelled[:count])))
            on = {"held-out pairs": held_out, "anchors aside": aside}
            accuracy = {name: 100 * float(agreement(score(pairs)).mean()) for name, pairs in on.items()}
            found.setdefault(way, {})[str(count)] = accuracy
    return found


def drawn_in_turn(pool: AnchorPairs, domains: tuple[str, ...], seed: int, counts: tuple[int, ...]) -> np.ndarray:
    """Order drawn anchors so that the first of each number are those of equal shares of the domains."""
    rows = np.zeros(0, dtype=int)
    for count in (_FIRST, *counts):
        left = np.setdiff1d(np.arange(len(pool.pairs)), rows)
        more = drawn_rows([pool.pairs.domains[row] for row in left], even(domains), count - len(rows), seed)
        rows = np.concatenate([rows, left[more]])
    return rows


def chosen_in_turn(
    pool: AnchorPairs, domains: tuple[str, ...], seed: int, counts: tuple[int, ...], weights: ProposalWeights
) -> np.ndarray:
    """Order anchors as they are proposed, after the first drawn ones, with a fit before each round."""
    rows = drawn_in_turn(pool, domains, seed, counts)[:_FIRST]
    while len(rows) < counts[-1]:
        left = np.setdiff1d(np.arange(len(pool.pairs)), rows)
        known, fresh = (ScoredPairs(pool.pairs.inputs[some], pool.pairs.scores[some]) for some in (rows, left))
        mixture, precision = _fit(known)
        proposed = propose(mixture, precision, known, fresh, count=_ROUND, weights=weights)
        rows = np.concatenate([rows, left[[one.candidate for one in proposed]]])
    return rows


def _fit(known: ScoredPairs) -> tuple[Mixture, float]:
    clients = [str(k) for k in range(known.scores.shape[1])]
    mixture, fitted = fit_mixture(clients, known.inputs, known.scores, entropy_floor=ENTROPY_FLOOR)
    return mixture, fitted.precision
