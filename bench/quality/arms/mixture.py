"""MoR, and MoR with one of its parts taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from mor_router import fit as routing
from mor_router.mixture import Mixture, fit_mixture
from mor_router.standardise import Standardiser

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
        change: Callable[[Mixture, Groups], Mixture] | None = None,
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
        mixture = fitted if self._change is None else self._change(fitted, pairs)
        return lambda groups: serve(mixture, groups)


def serve(mixture: Mixture, groups: Groups) -> Rewards:
    """What ``mor_router.fuse`` with the weighted fusion gives group by group, for all groups at once."""
    trust = mixture.weights(groups.inputs, mixture.clients) * mixture.slopes(groups.inputs)
    served = np.stack([unit(groups.scores[:, k]) for k, unit in enumerate(mixture.standardisers)], axis=1)
    return np.asarray(np.einsum("nk,nkg->ng", trust, served))


def ablations() -> list[MixtureOfRewards]:
    """MoR without its gate, its regions, its regional slopes, its entropy floor, its standardisation."""
    return [
        MixtureOfRewards("no gate: uniform weights, fitted slopes", entropy_floor=1.0),
        MixtureOfRewards("no regions: one gate and slope for all inputs", regions=False),
        MixtureOfRewards("global slopes, regional gate", change=_global_slopes),
        MixtureOfRewards("no entropy floor", entropy_floor=0.0),
        MixtureOfRewards("no standardisation", change=_raw),
    ]


def _global_slopes(mixture: Mixture, pairs: Groups) -> Mixture:
    return replace(mixture, regional=np.zeros_like(mixture.regional))


def _raw(mixture: Mixture, pairs: Groups) -> Mixture:
    """Slopes and gate fitted anew, on the same regions, to the scores as they came."""
    found = routing.fit(
        routing.Anchors(
            mixture.regions.responsibilities(pairs.inputs),
            pairs.scores[:, :, 0] - pairs.scores[:, :, 1],
            np.ones(pairs.scores.shape[:2], dtype=bool),
        ),
        temperature=mixture.temperature,
        entropy_floor=mixture.entropy_floor,
    )
    as_it_came = Standardiser(spread=1.0, limit=np.inf, centre=0.0, low=-np.inf, high=np.inf)
    return replace(
        mixture,
        standardisers=(as_it_came,) * len(mixture.clients),
        embeddings=found.embeddings,
        prior=found.prior,
        common=found.common,
        regional=found.regional,
    )
