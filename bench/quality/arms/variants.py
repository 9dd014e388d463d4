"""Variants of MoR, each with one change of what the fit sees: of regions, of scores, or of their scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.mixture import fit_standardisers
from mor_router.mathematics.standardise import Standardiser
from numpy import ndarray

from quality.arms.arm import Score
from quality.arms.mixture import MixtureOfRewards, as_they_came, serve
from quality.group_scores import AnchorPairs, GroupScores

Change = Callable[[GroupScores], GroupScores]
Scores = Float[ndarray, "groups clients size"]

_STEPS = 200
"""Steps of the factor analysis."""
_LARGEST_LOADING = 0.95
"""A client that agrees with the common factor entirely would get all the weight."""


class Variant:
    """MoR that is fitted and served on changed groups; the change may use the anchors' scores, and no label."""

    def __init__(
        self,
        title: str,
        change: Callable[[GroupScores], Change],
        standardise: Callable[[Scores], Sequence[Standardiser]] | None = None,
    ) -> None:
        """``standardise``: makes the units of the changed scores, in place of the router's."""
        self.title = title
        self._change = change
        self._mixture = MixtureOfRewards(standardise=standardise)

    def fit(self, anchors: AnchorPairs) -> Score:
        changed = self._change(anchors.pairs)
        mixture = self._mixture.mixture(AnchorPairs(changed(anchors.pairs)))
        return lambda groups: serve(mixture, changed(groups))


def variants(unlabelled: GroupScores) -> list[Variant]:
    """List the variants. ``unlabelled``: groups of live traffic, of which only the scores are used."""
    return [
        Variant("regions see the responses too", _regions_with_answers),
        Variant("weights by equal and unequal length", _by_length, as_they_came),
        Variant("weights by agreement of the clients", _by_agreement, as_they_came),
        Variant("one factor of unlabelled groups as a further client", _common_factor(unlabelled)),
        Variant("saturation at 6", _unchanged, _scaled(1, 6)),
        Variant("client's own scale within a factor of 4", _unchanged, _scaled(4, 2)),
        Variant("client's own scale within a factor of 4, saturation at 6", _unchanged, _scaled(4, 6)),
    ]


def _unchanged(_: GroupScores) -> Change:
    return lambda groups: groups


def _regions_with_answers(pairs: GroupScores) -> Change:
    size = np.linalg.norm(pairs.inputs, axis=1).mean()

    def change(groups: GroupScores) -> GroupScores:
        assert groups.answers is not None
        return replace(groups, inputs=np.concatenate([groups.inputs, size * groups.answers.embeddings.mean(1)], 1))

    return change


def _by_length(pairs: GroupScores) -> Change:
    """Split each client's scores in means over responses of one length, and the differences from these."""
    units = fit_standardisers(pairs.scores)

    def change(groups: GroupScores) -> GroupScores:
        assert groups.answers is not None
        words = groups.answers.words
        alike = (words[:, :, None] == words[:, None, :]).astype(float)
        scores = _standardised(units, groups.scores)
        means = np.einsum("nij,nkj->nki", alike / alike.sum(2, keepdims=True), scores)
        return groups.with_scores(np.concatenate([means, scores - means], 1))

    return change


def _by_agreement(pairs: GroupScores) -> Change:
    """Give each client one weight for groups about which clients agree, and one for others."""
    units = fit_standardisers(pairs.scores)
    middle = np.median(_agreement(_standardised(units, pairs.scores)))

    def change(groups: GroupScores) -> GroupScores:
        scores = _standardised(units, groups.scores)
        agreed = (_agreement(scores) > middle)[:, None, None]
        return groups.with_scores(np.concatenate([np.where(agreed, scores, 0), np.where(agreed, 0, scores)], 1))

    return change


def _agreement(scores: Scores) -> Float[ndarray, " groups"]:
    """Return the share of the scores' variation within a group that their mean over clients has."""
    centred = scores - scores.mean(2, keepdims=True)
    whole = (centred**2).mean((1, 2))
    return np.asarray((centred.mean(1) ** 2).mean(1) / np.maximum(whole, 1e-12))


def _common_factor(unlabelled: GroupScores) -> Callable[[GroupScores], Change]:
    """Add the clients' common factor as one more client: scores of independent judges correlate by their skill alone.

    Factor analysis with one factor by principal axes (Harman 1976); its weights are those of Bartlett's estimate.
    """

    def fit(pairs: GroupScores) -> Change:
        units = fit_standardisers(pairs.scores)
        centred = _standardised(units, unlabelled.scores)
        seen = (centred - centred.mean(2, keepdims=True)).transpose(0, 2, 1).reshape(-1, centred.shape[1])
        spread = np.maximum(seen.std(0), 1e-9)
        loading = _one_factor(np.corrcoef(seen / spread, rowvar=False))
        weight = loading / (1 - loading**2) / spread

        def change(groups: GroupScores) -> GroupScores:
            common = np.einsum("k,nkg->ng", weight, _standardised(units, groups.scores))
            return groups.with_scores(np.concatenate([groups.scores, common[:, None]], 1))

        return change

    return fit


def _one_factor(correlation: Float[ndarray, "clients clients"]) -> Float[ndarray, " clients"]:
    """Return the clients' loadings on one factor, none below 0."""
    reduced = np.nan_to_num(correlation)
    loading = np.zeros(len(reduced))
    for _ in range(_STEPS):
        values, vectors = np.linalg.eigh(reduced)
        axis = vectors[:, -1] * np.sign(vectors[:, -1].sum())
        loading = np.clip(axis * np.sqrt(max(values[-1], 0.0)), 0, _LARGEST_LOADING)
        np.fill_diagonal(reduced, loading**2)
    return loading


def _scaled(factor: float, saturation: float) -> Callable[[Scores], list[Standardiser]]:
    """Keep a client's own scale where it is within ``factor`` of the clients' median; saturate at ``saturation``."""

    def fit(scores: Scores) -> list[Standardiser]:
        units = fit_standardisers(scores)
        middle = float(np.median([unit.spread for unit in units]))
        return [
            replace(
                unit,
                spread=unit.spread / np.clip(unit.spread / middle, 1 / factor, factor),
                limit=saturation / 2 * unit.limit,
            )
            for unit in units
        ]

    return fit


def _standardised(units: Sequence[Standardiser], scores: Scores) -> Scores:
    return np.stack([unit(scores[:, k]) for k, unit in enumerate(units)], axis=1)
