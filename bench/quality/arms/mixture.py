"""MoR, and MoR without one of its parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float
from mor_router.mathematics.mixture import Mixture, fit_mixture
from mor_router.mathematics.standardise import Standardiser
from numpy import ndarray

from quality.arms.arm import Score
from quality.group_scores import AnchorPairs, GroupScores, Rewards

ENTROPY_FLOOR = 0.1
"""The router's default."""
_AS_IT_CAME = Standardiser(spread=1.0, limit=1e9, centre=0.0, low=-np.inf, high=np.inf)
"""Unit that leaves scores as they are."""


class MixtureOfRewards:
    """R_i = Σ_k w_k(x) a_k(x) s̃_ki, fitted and served by the router's own functions with its default settings."""

    title = "MoR"

    def __init__(
        self,
        title: str = title,
        *,
        entropy_floor: float = ENTROPY_FLOOR,
        regions: bool = True,
        standardise: Callable[[Float[ndarray, "pairs clients 2"]], Sequence[Standardiser]] | None = None,
        change: Callable[[Mixture], Mixture] | None = None,
    ) -> None:
        """``regions`` off fits without regard to inputs; ``standardise`` makes the clients' units, in place of the
        router's; ``change`` removes a part after the fit.
        """
        self.title = title
        self._entropy_floor = entropy_floor
        self._regions = regions
        self._standardise = standardise
        self._change = change

    def fit(self, anchors: AnchorPairs) -> Score:
        mixture = self.mixture(anchors)
        return lambda groups: serve(mixture, groups)

    def mixture(self, anchors: AnchorPairs) -> Mixture:
        pairs = anchors.pairs
        clients = [str(k) for k in range(pairs.scores.shape[1])]
        fitted, _ = fit_mixture(
            clients,
            pairs.inputs if self._regions else np.zeros_like(pairs.inputs),
            pairs.scores,
            entropy_floor=self._entropy_floor,
            standardisers=None if self._standardise is None else self._standardise(pairs.scores),
        )
        return fitted if self._change is None else self._change(fitted)


def serve(mixture: Mixture, groups: GroupScores) -> Rewards:
    """Compute the weighted fusion of ``group_fusion`` for all groups at once."""
    trust = mixture.weights(groups.inputs, mixture.clients) * mixture.slopes(groups.inputs)
    served = np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
    return np.asarray(np.einsum("nk,nkg->ng", trust, served))


def as_they_came(scores: Float[ndarray, "pairs clients 2"]) -> list[Standardiser]:
    """Return units that leave scores as they are."""
    return [_AS_IT_CAME] * scores.shape[1]


def without_support() -> MixtureOfRewards:
    return MixtureOfRewards("no support: the fit counts everywhere", change=_everywhere)


def ablations() -> list[MixtureOfRewards]:
    """List MoR without its gate, regions, support, entropy floor or standardisation."""
    return [
        MixtureOfRewards("no gate: every client counts the same", change=_even),
        MixtureOfRewards("no regions: global instead of regional slopes", regions=False),
        without_support(),
        MixtureOfRewards("no entropy floor", entropy_floor=0.0),
        MixtureOfRewards("no standardisation", standardise=as_they_came),
    ]


def _even(mixture: Mixture) -> Mixture:
    everywhere = np.zeros_like(mixture.coefficients)
    everywhere[0] = 1.0
    return replace(mixture, coefficients=everywhere)


def _everywhere(mixture: Mixture) -> Mixture:
    return replace(mixture, support=replace(mixture.support, landmarks=mixture.support.landmarks[:0]))
