"""MoR, and MoR with one of its parts taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mor_router.mixture import Mixture, fit_mixture

from quality.arms.arm import Score
from quality.scored import Anchors, Groups, Rewards

_TEMPERATURE = 1.0
_ENTROPY_FLOOR = 0.1


class MixtureOfRewards:
    """R_i = Σ_k w_k(x) a_k(x) s̃_ki, fitted and served by the router's own functions with its default settings."""

    title = "MoR"

    def __init__(
        self,
        title: str = title,
        *,
        entropy_floor: float = _ENTROPY_FLOOR,
        regions: bool = True,
        change: Callable[[Mixture], Mixture] = lambda mixture: mixture,
    ) -> None:
        """``regions`` off fits as if all inputs were one. ``change`` takes a part away after fitting."""
        self.title = title
        self._entropy_floor = entropy_floor
        self._regions = regions
        self._change = change

    def fit(self, anchors: Anchors) -> Score:
        pairs = anchors.pairs
        clients = [str(k) for k in range(pairs.scores.shape[1])]
        inputs = pairs.inputs if self._regions else np.zeros_like(pairs.inputs)
        fitted, _ = fit_mixture(
            clients, inputs, pairs.scores, temperature=_TEMPERATURE, entropy_floor=self._entropy_floor
        )
        mixture = self._change(fitted)
        return lambda groups: serve(mixture, groups)


def serve(mixture: Mixture, groups: Groups) -> Rewards:
    """What ``mor_router.fuse`` with the weighted fusion gives group by group, for all groups at once."""
    trust = mixture.weights(groups.inputs, mixture.clients) * mixture.slopes(groups.inputs)
    served = np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
    return np.einsum("nk,nkg->ng", trust, served)


def ablations() -> list[MixtureOfRewards]:
    """MoR without its gate, its regions, its regional slopes, its entropy floor, its standardisation."""
    return [
        MixtureOfRewards("no gate: uniform weights, fitted slopes", entropy_floor=1.0),
        MixtureOfRewards("no regions: one gate and slope for all inputs", regions=False),
        MixtureOfRewards("global slopes, regional gate", change=_global_slopes),
        MixtureOfRewards("no entropy floor", entropy_floor=0.0),
    ]


def _global_slopes(mixture: Mixture) -> Mixture:
    return replace(mixture, regional=np.zeros_like(mixture.regional))
