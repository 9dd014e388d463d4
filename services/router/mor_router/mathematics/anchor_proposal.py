"""Proposal of the pairs to have labelled next: information under the fit's posterior, disagreement, and coverage.

Deviations: MacKay (1992) and BALD (Houlsby et al. 2011, arXiv 1112.5745) measure information; here it is that of a
Laplace approximation at the mixture's optimum, and clients' disagreement and the distance from labelled anchors are
added, because a posterior of few labels is sure of what it has never seen.

With z_n = g ∘ (ψ(x_n) ⊗ d_n) the row of pair n in the coordinates φ of ``coefficients``, m_n = z_n·φ and
s_n = σ(m_n)(1 − σ(m_n)):

    H     = λ I + Σ_n s_n z_n z_nᵀ                   n: labelled pairs, and those that wait for a label
    I_c   = ½ log(1 + s_c z_cᵀ H⁻¹ z_c)            information about the coefficients, nats
    D_c   = entropy of the clients' weighted votes, nats
    C_c   = 1 / ( 1 + Σ_n min( cos(ψ(x_c), ψ(x_n)), 1 − ν(x_c; x_n) ) )      n: those and chosen pairs

    value = I_c / max I + ``disagreement`` D_c / log 2 + ``coverage`` C_c

C_c is the variance of a mean over the pair and those that are alike, relative to that of the pair alone. ν(x; x_n) is
the score of ``support`` with x_n as the only anchor: ψ cannot tell a new topic from a mean of the known ones, because
the regions are those of the labelled inputs.

Pairs are chosen one by one, and each chosen pair enters H and the labelled inputs before the next, so that equal pairs
are not chosen together. Of the pairs of one group of responses, one is chosen at most. No label of a candidate is used,
and the order of its two responses does not matter. The bound φ ≥ 0 of the fit is left out of the approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mor_router.mathematics import regional_slopes
from mor_router.mathematics.coefficients import Anchors
from mor_router.mathematics.mixture import Mixture, standardised_differences
from mor_router.mathematics.regions import squared_distances
from mor_router.mathematics.support import nearness


@dataclass(frozen=True)
class ProposalWeights:
    """Weights of the parts of a pair's value beside information, whose weight is 1."""

    disagreement: float = 1.0
    coverage: float = 1.0


@dataclass(frozen=True)
class ProposedPair:
    """Candidate in the order of the proposal, with the parts of its value when it was chosen."""

    candidate: int
    information: float
    """Nats about the coefficients that its label is expected to give."""
    disagreement: float
    """Entropy of the clients' votes, nats: 0 where all agree."""
    coverage: float
    """Share of what a first label would tell there: 1 where no labelled or chosen pair is alike, 1/2 after one."""


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of responses as the clients scored them."""

    inputs: Float[ndarray, "pairs embedding"]
    scores: Float[ndarray, "pairs clients 2"]
    """Raw scores; NaN where a client gave none."""

    def __len__(self) -> int:
        return len(self.inputs)

    def joined(self, others: ScoredPairs) -> ScoredPairs:
        """Return these pairs and others."""
        return ScoredPairs(np.concatenate([self.inputs, others.inputs]), np.concatenate([self.scores, others.scores]))

    def anchors(self, mixture: Mixture) -> Anchors:
        """Return the pairs as the fit of ``mixture`` sees them."""
        features = regional_slopes.features(mixture.regions, self.inputs)
        return Anchors(features, standardised_differences(mixture.standardisers, self.scores), np.zeros(len(self)))


def propose(
    mixture: Mixture,
    precision: float,
    labelled: ScoredPairs,
    candidates: ScoredPairs,
    *,
    count: int,
    weights: ProposalWeights | None = None,
    groups: Int[ndarray, " candidates"] | None = None,
    waiting: ScoredPairs | None = None,
) -> list[ProposedPair]:
    """Choose ``count`` candidates to label, the most valuable first.

    ``mixture`` and ``precision`` (λ) are those of a fit on ``labelled``, whose first response is the preferred one.
    ``groups``: number of each candidate's group; by default each is a group of its own. ``waiting``: pairs that will
    have a label soon, in any order of the responses.

    Raises:
        ValueError: fewer groups of candidates than wanted.
    """
    groups = np.arange(len(candidates)) if groups is None else groups
    if count > (available := len(np.unique(groups))):
        raise ValueError(
            f"{count} pairs are wanted and {available} are candidates; give more candidates or ask for fewer"
        )
    weights = weights or ProposalWeights()
    scale = labelled.anchors(mixture).penalised_loss().widths
    labelled = labelled if waiting is None else labelled.joined(waiting)  # H is the same whatever their labels
    known, fresh = labelled.anchors(mixture), candidates.anchors(mixture)
    sharpness = _sharpness(fresh.margins(mixture.coefficients))
    votes = _votes(fresh.differences, mixture.evidence(candidates.inputs))
    # G = z H⁻¹ zᵀ in the space of pairs, of which only the diagonal and the columns of chosen pairs are computed.
    rows, seen = _rows(fresh, scale), _rows(known, scale)
    cross = rows @ seen.T
    inner = seen @ seen.T + precision * np.diag(1 / _sharpness(known.margins(mixture.coefficients)))
    solved = np.linalg.solve(inner, cross.T)
    spread = (np.square(rows).sum(axis=1) - (cross * solved.T).sum(axis=1)) / precision
    learned = np.zeros((len(candidates), 0))
    direction, radius = _unit(fresh.features), mixture.support.squared
    near = nearness(squared_distances(candidates.inputs, labelled.inputs), radius)
    alike = np.minimum(direction @ _unit(known.features).T, near).sum(axis=1)
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[ProposedPair] = []
    for _ in range(count):
        information = 0.5 * np.log1p(sharpness * np.maximum(spread, 0))
        coverage = 1 / (1 + alike)
        highest = float(information[left].max()) or 1.0
        value = information / highest + weights.disagreement * votes / np.log(2) + weights.coverage * coverage
        best = int(np.where(left, value, -np.inf).argmax())
        chosen.append(ProposedPair(best, float(information[best]), float(votes[best]), float(coverage[best])))
        left[groups == groups[best]] = False
        column = (rows @ rows[best] - cross @ solved[:, best]) / precision - learned @ learned[best]
        step = column / np.sqrt(1 / sharpness[best] + max(spread[best], 0))
        learned = np.column_stack([learned, step])
        spread = spread - np.square(step)
        near = nearness(squared_distances(candidates.inputs, candidates.inputs[[best]])[:, 0], radius)
        alike = alike + np.minimum(direction @ direction[best], near)
    return chosen


def _rows(anchors: Anchors, scale: Float[ndarray, "features clients"]) -> Float[ndarray, "pairs coefficients"]:
    """Compute z of each pair."""
    outer = anchors.features[:, :, None] * anchors.differences[:, None, :] * scale
    return np.asarray(outer.reshape(len(outer), -1))


def _sharpness(margins: Float[ndarray, " pairs"]) -> Float[ndarray, " pairs"]:
    """Compute σ(m)(1 − σ(m)), the curvature of a label's loss."""
    small = np.exp(-np.minimum(np.abs(margins), 50))
    return np.asarray(small / np.square(1 + small))


def _votes(
    differences: Float[ndarray, "pairs clients"], evidence: Float[ndarray, "pairs clients"]
) -> Float[ndarray, " pairs"]:
    """Compute the entropy of the votes for the first response, each weighted by its client's evidence."""
    cast = np.where(differences != 0, evidence + 1e-12, 0.0)
    total = np.maximum(cast.sum(axis=1), 1e-300)
    share = np.clip((cast * (differences > 0)).sum(axis=1) / total, 1e-12, 1 - 1e-12)
    return np.asarray(-share * np.log(share) - (1 - share) * np.log(1 - share))


def _unit(features: Float[ndarray, "pairs features"]) -> Float[ndarray, "pairs features"]:
    """Scale the regional features of each pair to length 1; the first is the same everywhere."""
    regional = features[:, 1:]
    return np.asarray(regional / np.maximum(np.linalg.norm(regional, axis=1, keepdims=True), 1e-12))
