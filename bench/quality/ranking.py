"""Ranking accuracy on held-out pairs, and intervals of the difference between two arms."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from quality.arms import Arm
from quality.group_scores import AnchorPairs, GroupScores, agreement

Right = Float[ndarray, "draws pairs"]
"""1 where an arm that was fitted on one draw of anchors ranks a pair as labelled, ½ for a tie."""

REPLICATES = 2000
"""Replicates of the bootstrap."""


@dataclass(frozen=True)
class Interval:
    """Percentile bootstrap interval, 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ArmStanding:
    """Accuracy of an arm, in percent; each difference is the reference arm's accuracy minus this arm's, in points."""

    accuracy: Interval
    domains: dict[str, float]
    worst: float
    behind: Interval
    worst_behind: Interval


def judge(arm: Arm, draws: Sequence[AnchorPairs], held_out: GroupScores, pool: Executor | None = None) -> Right:
    """Evaluate the arm, fitted on each draw of anchors, on all held-out pairs."""
    return judge_each(arm, [(anchors, held_out) for anchors in draws], pool)


def judge_each(arm: Arm, cases: Sequence[tuple[AnchorPairs, GroupScores]], pool: Executor | None = None) -> Right:
    """Evaluate the arm if every draw of anchors has its own scores for the held-out pairs."""
    run = pool.map if pool else map
    return np.stack(list(run(_judge_one, [arm] * len(cases), *zip(*cases, strict=True))))


def _judge_one(arm: Arm, anchors: AnchorPairs, held_out: GroupScores) -> Float[ndarray, " pairs"]:
    return agreement(arm.fit(anchors)(held_out))


def draw(pool: AnchorPairs, shares: Mapping[str, float], count: int, seed: int) -> AnchorPairs:
    """Draw ``count`` anchors without replacement, by the domains' shares, which sum to 1."""
    return AnchorPairs(pool.pairs.take(drawn_rows(pool.pairs.domains, shares, count, seed)))


def drawn_rows(of: Sequence[str], shares: Mapping[str, float], count: int, seed: int) -> Int[ndarray, " count"]:
    """Return the rows that ``draw`` takes from a pool with these domains."""
    random = np.random.default_rng(seed)
    domains = np.array(of)
    names = sorted(shares)
    ends = np.rint(np.cumsum([shares[name] for name in names]) * count).astype(int)
    sizes = np.diff(ends, prepend=0)
    chosen = [
        random.choice(np.flatnonzero(domains == name), size, replace=False)
        for name, size in zip(names, sizes, strict=True)
    ]
    return np.sort(np.concatenate(chosen))


def standings(
    results: Mapping[str, Right], reference: str, domains: Sequence[str], pictures: Sequence[Hashable]
) -> dict[str, ArmStanding]:
    """Compute accuracies by arm, and the distance of each to ``reference``.

    Pairs about one picture are resampled together, and so are the draws of anchors; all arms see the same resample
    (paired bootstrap, Efron & Tibshirani 1993).
    """
    names = sorted(set(domains))
    member = np.array([[domain == name for name in names] for domain in domains], dtype=float)
    number = {picture: index for index, picture in enumerate(dict.fromkeys(pictures))}
    cluster = np.array([number[picture] for picture in pictures])
    random = np.random.default_rng(0)
    clusters, count = len(number), len(next(iter(results.values())))
    taken = random.multinomial(clusters, np.full(clusters, 1 / clusters), size=REPLICATES)
    drawn = random.multinomial(count, np.full(count, 1 / count), size=REPLICATES) / count
    totals = taken @ _by_cluster(member, cluster, clusters)

    def resampled(right: Right) -> Float[ndarray, "replicates domains"]:
        sums = np.stack([_by_cluster(row[:, None] * member, cluster, clusters) for row in right])
        return np.asarray(np.einsum("rd,rc,dcm->rm", drawn, taken, sums, optimize=True))

    def spread(values: Float[ndarray, " replicates"], mean: float) -> Interval:
        low, high = np.quantile(100 * values, (0.025, 0.975))
        return Interval(100 * mean, float(low), float(high))

    found = {arm: resampled(right) for arm, right in results.items()}
    overall = {arm: hits.sum(axis=1) / totals.sum(axis=1) for arm, hits in found.items()}
    worst = {arm: (hits / np.maximum(totals, 1)).min(axis=1) for arm, hits in found.items()}
    accuracy = {arm: float(right.mean()) for arm, right in results.items()}
    by_domain = {arm: (right.mean(axis=0) @ member / member.sum(axis=0)).tolist() for arm, right in results.items()}
    return {
        arm: ArmStanding(
            accuracy=spread(overall[arm], accuracy[arm]),
            domains={name: 100 * value for name, value in zip(names, by_domain[arm], strict=True)},
            worst=100 * min(by_domain[arm]),
            behind=spread(overall[reference] - overall[arm], accuracy[reference] - accuracy[arm]),
            worst_behind=spread(worst[reference] - worst[arm], min(by_domain[reference]) - min(by_domain[arm])),
        )
        for arm in results
    }


@dataclass(frozen=True)
class Lead:
    """Lead of one arm over another, in points."""

    mean: Interval
    """Lead in the mean over domains, with equal weights."""
    worst: Interval
    """Lead in each arm's worst domain."""


def lead(ours: Float[ndarray, "runs rows"], theirs: Float[ndarray, "runs rows"], domains: Sequence[str]) -> Lead:
    """Compute the lead on the same rows by a paired bootstrap over rows within each domain and over runs.

    An arm with a single run is compared with each run of the other.
    """
    random = np.random.default_rng(0)
    values, of = np.stack(np.broadcast_arrays(ours, theirs)), np.array(domains)
    count = values.shape[1]
    members = [np.flatnonzero(of == name) for name in sorted(set(domains))]
    level = np.stack([values[:, :, rows].mean(axis=(1, 2)) for rows in members], axis=1)
    drawn = [rows[random.integers(len(rows), size=(REPLICATES, len(rows)))] for rows in members]
    taken = random.multinomial(count, np.full(count, 1 / count), size=REPLICATES) / count
    levels = np.stack([np.einsum("arn,nr->an", values[:, :, rows].mean(axis=3), taken) for rows in drawn], axis=2)

    def interval(of_domains: Callable[[ndarray], ndarray]) -> Interval:
        first, second = of_domains(levels)
        low, high = np.quantile(100 * (first - second), (0.025, 0.975))
        whole = of_domains(level)
        return Interval(100 * float(whole[0] - whole[1]), float(low), float(high))

    return Lead(interval(lambda found: found.mean(axis=-1)), interval(lambda found: found.min(axis=-1)))


def _by_cluster(
    values: Float[ndarray, "pairs domains"], cluster: ndarray, clusters: int
) -> Float[ndarray, "clusters domains"]:
    return np.stack([np.bincount(cluster, column, minlength=clusters) for column in values.T], axis=1)
