"""Success of membership attacks: area under the ROC curve, true positives at few false ones, lower bound of ε.

``scores`` hold one number per pair or picture, larger where it looks like a member; ``member`` is the truth.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Bool, Float, Int
from mor_core.intervals import exact_lower, wilson

Scores = Float[np.ndarray, " units"]
Members = Bool[np.ndarray, " units"]

FALSE_POSITIVES = 0.01
"""Share of non-members that may be called members where true positives are counted."""
_RESAMPLES = 1000
_FEW = 12
"""Clusters of members or non-members below which resamples alone are too alike: a model trained on nothing would be
found guilty in 10 to 100 % of the cases rather than in 5 %."""
_CELLS = 2_000_000
"""Weights of resamples computed at a time; bounds memory to some 50 MB."""
_GUESSED = (0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the units about which the auditor guesses, the most certain first; tried together, with a correction."""


def auc(scores: Scores, member: Members) -> float:
    """Return the probability that a member scores above a non-member; a tie counts half (Mann and Whitney 1947)."""
    return float(_weighted_auc(scores, member, np.ones((1, len(scores))))[0])


def auc_interval(
    scores: Scores, member: Members, cluster: Int[np.ndarray, " units"], seed: int, *, tried: int = 1
) -> tuple[float, float]:
    """Return the 95 % percentile interval of ``auc`` over resamples of members' and non-members' clusters.

    ``cluster``: picture, or person, of each unit. These are drawn rather than pairs, because pairs of one picture are
    no independent observations. All units of a cluster are members, or none is. With ``tried`` attacks on the same
    units, the intervals hold for all of them at once (Bonferroni), and so for the one that is picked for its AUC.

    Of few clusters the interval also covers that of a proportion with the spread that guessing has (Mann and Whitney
    1947), because few clusters hardly vary when they are drawn again: three of three prove little.
    """
    rng = np.random.default_rng(seed)
    numbers, place = np.unique(cluster, return_inverse=True)
    of_members = np.zeros(len(numbers), dtype=bool)
    of_members[place[member]] = True
    sides = [np.flatnonzero(of_members), np.flatnonzero(~of_members)]
    at_once = max(1, _CELLS // len(scores))
    found: list[np.ndarray] = []
    for start in range(0, _RESAMPLES, at_once):
        drawn = np.zeros((min(at_once, _RESAMPLES - start), len(numbers)))
        for side in sides:
            drawn[:, side] = rng.multinomial(len(side), np.full(len(side), 1 / len(side)), size=len(drawn))
        found.append(_weighted_auc(scores, member, drawn[:, place]))
    low, high = np.quantile(np.concatenate(found), [0.025 / tried, 1 - 0.025 / tried])
    members, others = map(len, sides)
    if min(members, others) < _FEW:
        trials = max(1.0, 3 * members * others / (members + others + 1) - 1)
        by_chance = wilson(auc(scores, member) * trials, trials, NormalDist().inv_cdf(1 - 0.025 / tried))
        low, high = min(low, by_chance[0]), max(high, by_chance[1])
    return float(low), float(high)


def true_positives(scores: Scores, member: Members) -> float:
    """Return the share of members above the threshold that at most 1 % of the non-members exceed."""
    others = np.sort(scores[~member])[::-1]
    threshold = others[int(FALSE_POSITIVES * len(others))]
    return float((scores[member] > threshold).mean())


def epsilon_lower(scores: Scores, member: Members, seed: int, *, tried: int = 1) -> float:
    """Return the largest ε, at δ = 0, that the attack's guesses rule out with 95 % confidence.

    With ``tried`` attacks on the same units, the largest bound of all holds with that confidence (Bonferroni).

    With as many members as non-members drawn at random, v of r guesses are right; of any ε-private training, v is at
    most binomial with probability e^ε/(1 + e^ε) (Steinke, Nasr and Jagielski 2023, theorem 5.2 at δ = 0; there, each
    unit's membership is a coin flip, here the draw is of equal sizes). Guesses are "member" for the largest scores and
    "non-member" for the smallest. ``scores`` may depend on ``member`` by the audited model alone.
    """
    rng = np.random.default_rng(seed)
    each = min(int(member.sum()), int((~member).sum()))
    chosen = np.concatenate([rng.choice(np.flatnonzero(side), each, replace=False) for side in (member, ~member)])
    chosen = rng.permutation(chosen)  # so that ties are in random order
    ranked = member[chosen[np.argsort(scores[chosen], kind="stable")]]
    bound = 0.0
    for share in _GUESSED:
        half = max(1, round(each * share))
        right = int(ranked[-half:].sum()) + int((~ranked[:half]).sum())
        probability = exact_lower(right, 2 * half, 0.05 / (len(_GUESSED) * tried))
        if probability > 0.5:
            bound = max(bound, math.log(probability / (1 - probability)))
    return bound


def _weighted_auc(
    scores: Scores, member: Members, weights: Float[np.ndarray, "resamples units"]
) -> Float[np.ndarray, " resamples"]:
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    begins = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    inside = member[order]
    members, others = (
        np.add.reduceat(np.where(side, weights[:, order], 0.0), begins, axis=1) for side in (inside, ~inside)
    )
    below = np.cumsum(others, axis=1) - others / 2
    area: np.ndarray = (members * below).sum(1) / (members.sum(1) * others.sum(1))
    return area
