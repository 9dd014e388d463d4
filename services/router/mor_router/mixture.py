"""The fitted whole of one objective: standardisers, regions, slopes and gate. Fitting and serving share it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mor_router import calibration, gate
from mor_router.fit import Anchors, Fitted, Frozen, Parameters, choose, fit
from mor_router.regions import Regions, fit_regions
from mor_router.standardise import Standardiser, fit_standardiser

_REGION_COUNTS = (1, 2, 3, 5, 8)
_PAIRS_PER_REGION = 8
_FIRST_PRECISION = 1.0


@dataclass(frozen=True)
class Mixture:
    clients: tuple[str, ...]
    standardisers: tuple[Standardiser, ...]
    """One for each client."""
    regions: Regions
    embeddings: Float[ndarray, "regions clients"]
    prior: Float[ndarray, " clients"]
    common: Float[ndarray, " clients"]
    regional: Float[ndarray, "regions clients"]
    temperature: float
    entropy_floor: float

    def weights(
        self, inputs: Float[ndarray, "inputs features"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]:
        """w(x, o) over ``available``; 0 for the other clients.

        Raises:
            ValueError: none of the mixture's clients is available.
        """
        return gate.weights(
            self.regions.responsibilities(inputs),
            self.embeddings,
            self.prior,
            np.array([client in available for client in self.clients]),
            temperature=self.temperature,
            entropy_floor=self.entropy_floor,
        )

    def slopes(self, inputs: Float[ndarray, "inputs features"]) -> Float[ndarray, "inputs clients"]:
        """a(x) in logits per standardised unit."""
        return calibration.slopes(self.regions.responsibilities(inputs), self.common, self.regional)


def fit_mixture(
    clients: Sequence[str],
    inputs: Float[ndarray, "pairs features"],
    scores: Float[ndarray, "pairs clients 2"],
    *,
    temperature: float,
    entropy_floor: float,
) -> tuple[Mixture, Fitted]:
    """Fit everything on anchors. ``scores[..., 0]`` is the raw score of the chosen response; NaN where none was given.

    The number of regions and the strength of their priors are chosen by cross-validated loss; the regions themselves
    never see a label.

    Raises:
        ValueError: too few pairs, or a client without a single one.
    """
    answered: Bool[ndarray, "pairs clients"] = ~np.isnan(scores).any(axis=2)
    standardisers = tuple(fit_standardiser(scores[answered[:, k], k]) for k in range(len(clients)))
    differences = standardised_differences(standardisers, scores)
    counts = [count for count in _REGION_COUNTS if count == 1 or count * _PAIRS_PER_REGION <= len(inputs)]
    found = fit_regions(inputs, counts)
    sets = [Anchors(regions.responsibilities(inputs), differences, answered) for regions in found]

    def held_out_loss(anchors: Anchors) -> float:
        _, margins = choose(anchors, (_FIRST_PRECISION,), temperature, entropy_floor)
        return float(np.logaddexp(0, -margins).mean())

    best = min(range(len(sets)), key=lambda index: held_out_loss(sets[index]))
    fitted = fit(sets[best], temperature=temperature, entropy_floor=entropy_floor)
    mixture = Mixture(
        clients=tuple(clients),
        standardisers=standardisers,
        regions=found[best],
        embeddings=fitted.parameters.embeddings,
        prior=fitted.parameters.prior,
        common=fitted.parameters.common,
        regional=fitted.parameters.regional,
        temperature=temperature,
        entropy_floor=entropy_floor,
    )
    return mixture, fitted


def extend_mixture(
    known: Mixture,
    newcomers: Sequence[str],
    inputs: Float[ndarray, "pairs features"],
    scores: Float[ndarray, "pairs clients 2"],
    precision: float,
) -> tuple[Mixture, Fitted]:
    """``known`` with ``newcomers``: their scales, slopes and gate logits are fitted, everything else stays as it is.

    ``scores`` are of the known clients first, NaN where one gave none; ``precision`` is the λ that ``known`` was fitted
    with. The newcomers' weight comes out of the others' in proportion, as the softmax has it.

    Raises:
        ValueError: too few pairs, or a newcomer without a single one.
    """
    answered: Bool[ndarray, "pairs clients"] = ~np.isnan(scores).any(axis=2)
    old = len(known.clients)
    fresh = tuple(fit_standardiser(scores[answered[:, k], k]) for k in range(old, scores.shape[1]))
    standardisers = known.standardisers + fresh
    anchors = Anchors(known.regions.responsibilities(inputs), standardised_differences(standardisers, scores), answered)
    new = Parameters.start(len(known.embeddings), len(newcomers))
    start = Parameters(
        np.hstack([known.embeddings, new.embeddings]),
        np.hstack([known.prior, new.prior]),
        np.hstack([known.common, new.common]),
        np.hstack([known.regional, new.regional]),
    )
    fitted = fit(
        anchors,
        temperature=known.temperature,
        entropy_floor=known.entropy_floor,
        precisions=(precision,),
        frozen=Frozen(start, np.arange(scores.shape[1]) >= old),
    )
    mixture = replace(
        known,
        clients=(*known.clients, *newcomers),
        standardisers=standardisers,
        embeddings=fitted.parameters.embeddings,
        prior=fitted.parameters.prior,
        common=fitted.parameters.common,
        regional=fitted.parameters.regional,
    )
    return mixture, fitted


def standardised_differences(
    standardisers: Sequence[Standardiser], scores: Float[ndarray, "pairs clients 2"]
) -> Float[ndarray, "pairs clients"]:
    """Chosen − rejected, as served; 0 where there is no score."""
    differences = np.zeros(scores.shape[:2])
    for k, standardiser in enumerate(standardisers):
        answered = ~np.isnan(scores[:, k]).any(axis=1)
        served = standardiser(scores[answered, k])
        differences[answered, k] = served[:, 0] - served[:, 1]
    return differences
