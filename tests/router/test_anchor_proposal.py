"""Proposal of pairs to label: its parts, and labels saved on a population with known truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mor_router.mathematics.anchor_proposal import (
    ProposalWeights,
    ScoredPairs,
    _rows,
    _sharpness,
    propose,
)
from mor_router.mathematics.mixture import Mixture, fit_mixture

NONE = ProposalWeights(disagreement=0, coverage=0)
CLIENTS = tuple("abcdef")


def pairs(skills: np.ndarray, seed: int) -> ScoredPairs:
    """Make inputs and labelled scores: client k knows skill k, misleads a little elsewhere; the last two are random."""
    random = np.random.default_rng(seed)
    inputs = np.eye(4)[skills] + 0.05 * random.normal(size=(len(skills), 4))
    known = np.where(np.arange(4) == skills[:, None], 2.0, -0.5)
    differences = np.concatenate([known, np.zeros((len(skills), 2))], axis=1) + random.normal(size=(len(skills), 6))
    return ScoredPairs(inputs, np.stack([differences / 2, -differences / 2], axis=2))


def fit(known: ScoredPairs) -> tuple[Mixture, float]:
    mixture, found = fit_mixture(CLIENTS, known.inputs, known.scores, entropy_floor=0.1)
    return mixture, found.precision


def accuracy(mixture: Mixture, live: ScoredPairs) -> float:
    units = np.stack([unit(live.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
    rewards = np.einsum("nk,nkg->ng", mixture.evidence(live.inputs), units)
    return float((rewards[:, 0] > rewards[:, 1]).mean())


def test_information_is_that_of_the_posterior_and_each_choice_shrinks_it() -> None:
    """Compare with the inverse of H in the space of coefficients, label by label."""
    known, fresh = pairs(np.arange(20) % 4, 0), pairs(np.arange(12) % 4, 1)
    mixture, precision = fit(known)
    found = propose(mixture, precision, known, fresh, count=3, weights=NONE)
    anchors, candidates = known.anchors(mixture), fresh.anchors(mixture)
    scale = anchors.penalised_loss().widths
    seen, rows = _rows(anchors, scale), _rows(candidates, scale)
    curvature = _sharpness(anchors.margins(mixture.coefficients))
    sharpness = _sharpness(candidates.margins(mixture.coefficients))
    whole = precision * np.eye(seen.shape[1]) + seen.T @ (curvature[:, None] * seen)
    taken: set[int] = set()
    for one in found:
        variances = np.einsum("nf,fg,ng->n", rows, np.linalg.inv(whole), rows)
        information = 0.5 * np.log1p(sharpness * variances)
        information[list(taken)] = -1
        assert one.candidate == information.argmax()
        assert one.information == pytest.approx(information.max(), rel=1e-6)
        taken.add(one.candidate)
        whole += sharpness[one.candidate] * np.outer(rows[one.candidate], rows[one.candidate])


def test_the_order_of_a_candidates_responses_does_not_matter() -> None:
    known, fresh = pairs(np.arange(20) % 4, 0), pairs(np.arange(30) % 4, 1)
    mixture, precision = fit(known)
    reversed_here = (np.arange(30) % 3 == 0)[:, None, None]
    turned = replace(fresh, scores=np.where(reversed_here, fresh.scores[:, :, ::-1], fresh.scores))
    first, second = (propose(mixture, precision, known, some, count=10) for some in (fresh, turned))
    assert [one.candidate for one in first] == [one.candidate for one in second]


def test_disagreement_is_preferred_where_it_counts() -> None:
    known = pairs(np.zeros(20, dtype=int), 0)
    mixture, precision = fit(known)
    even = replace(mixture, coefficients=np.ones_like(mixture.coefficients))
    fresh = pairs(np.zeros(2, dtype=int), 1)
    scores = fresh.scores
    scores[0, :, 0], scores[1, :, 0] = 1.0, [1, -1, 1, -1, 1, -1]
    scores[:, :, 1] = -scores[:, :, 0]
    votes = ProposalWeights(disagreement=10, coverage=0)
    voted = propose(even, precision, known, fresh, count=2, weights=votes)
    assert [one.candidate for one in voted] == [1, 0]
    assert voted[0].disagreement > 0.6 > 1e-6 > voted[1].disagreement


def test_coverage_prefers_what_no_label_is_near() -> None:
    known, fresh = pairs(np.arange(20) % 2, 0), pairs(np.array([0, 1, 3, 3]), 1)
    mixture, precision = fit(known)
    spread = ProposalWeights(disagreement=0, coverage=100)
    found = propose(mixture, precision, known, fresh, count=4, weights=spread)
    assert found[0].candidate in {2, 3}
    assert found[0].coverage > found[1].coverage


def test_a_kind_of_input_without_any_label_is_found() -> None:
    """The regions know nothing of it: they are those of the labelled inputs."""
    skills = np.arange(400) % 4
    pool, rows = pairs(skills, 5), [int(row) for row in np.flatnonzero(skills < 2)[:8]]
    left = np.setdiff1d(np.arange(400), rows)
    mixture, precision = fit(taken(pool, rows))
    found = propose(mixture, precision, taken(pool, rows), taken(pool, left), count=8)
    assert sum(skills[left[one.candidate]] >= 2 for one in found) >= 4


def test_of_a_group_of_pairs_one_is_chosen_at_most() -> None:
    known, fresh = pairs(np.arange(20) % 4, 0), pairs(np.arange(12) % 4, 1)
    mixture, precision = fit(known)
    groups = np.arange(12) // 3
    found = propose(mixture, precision, known, fresh, count=4, groups=groups)
    assert {int(groups[one.candidate]) for one in found} == {0, 1, 2, 3}
    with pytest.raises(ValueError, match="5 pairs are wanted and 4 are candidates"):
        propose(mixture, precision, known, fresh, count=5, groups=groups)


def test_pairs_that_wait_for_a_label_count_as_labelled_whatever_the_label() -> None:
    known, fresh = pairs(np.arange(20) % 2, 0), pairs(np.arange(40) % 4, 1)
    mixture, precision = fit(known)
    found = propose(mixture, precision, known, fresh, count=16)
    first, second = ([one.candidate for one in found][part] for part in (slice(8), slice(8, 16)))
    left = np.setdiff1d(np.arange(40), first)
    waiting = taken(fresh, first)
    turned = ScoredPairs(waiting.inputs, waiting.scores[:, :, ::-1])
    for some in (waiting, turned):
        after = propose(mixture, precision, known, taken(fresh, left), count=8, waiting=some)
        assert [int(left[one.candidate]) for one in after] == second


def test_missing_scores_are_no_votes_and_too_many_are_refused() -> None:
    known, fresh = pairs(np.arange(20) % 4, 0), pairs(np.arange(8) % 4, 1)
    mixture, precision = fit(known)
    fresh.scores[3] = np.nan
    found = {one.candidate: one for one in propose(mixture, precision, known, fresh, count=8)}
    assert found[3].information == pytest.approx(0)
    assert found[3].disagreement == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="9 pairs are wanted and 8 are candidates"):
        propose(mixture, precision, known, fresh, count=9)


def test_chosen_labels_are_worth_more_than_twice_as_many_drawn_ones() -> None:
    """Three of four skills are rare among the candidates, as regions of live traffic are."""
    held_out = pairs(np.arange(800) % 4, 99)
    chosen, drawn = [], []
    for seed in range(4):
        skills = np.random.default_rng(seed).choice(4, size=400, p=[0.91, 0.03, 0.03, 0.03])
        pool = pairs(skills, seed)
        rows = list(range(8))
        while len(rows) < 32:
            left = np.setdiff1d(np.arange(400), rows)
            mixture, precision = fit(taken(pool, rows))
            found = propose(mixture, precision, taken(pool, rows), taken(pool, left), count=8)
            rows += [int(left[one.candidate]) for one in found]
        chosen.append(accuracy(fit(taken(pool, rows))[0], held_out))
        drawn.append(accuracy(fit(taken(pool, np.arange(80)))[0], held_out))
    assert np.mean(chosen) > np.mean(drawn) + 0.02, (chosen, drawn)


def taken(pool: ScoredPairs, rows: list[int] | np.ndarray) -> ScoredPairs:
    return ScoredPairs(pool.inputs[rows], pool.scores[rows])
