"""The fitted model of one objective: standardisers, regions, coefficients and support.

Fitting and serving share it, so the function that is fitted is the function that is served.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from mor_router.mathematics import gate, regional_slopes
from mor_router.mathematics.coefficients import Anchors, FitResult, fit
from mor_router.mathematics.gate import GateEvaluation
from mor_router.mathematics.regions import Regions, fit_regions
from mor_router.mathematics.standardise import Standardiser, fit_standardiser
from mor_router.mathematics.support import Support, fit_support


@dataclass(frozen=True)
class Mixture:
    """Mixture of rewards of one objective."""

    clients: tuple[str, ...]
    standardisers: tuple[Standardiser, ...]
    """One for each client."""
    regions: Regions
    coefficients: Float[ndarray, "features clients"]
    """θ: each client's coefficient everywhere, and in each region in addition."""
    support: Support
    typical: float
    """Mean of β over clients and anchors: every client's evidence far from all anchors."""
    entropy_floor: float

    def evidence(self, inputs: Float[ndarray, "inputs embedding"]) -> Float[ndarray, "inputs clients"]:
        """Compute (1 − ν(x)) β(x) + ν(x) · ``typical``: the log-odds that one standardised unit of a client adds."""
        return self._evidence(inputs, self.ood_score(inputs))

    def ood_score(self, inputs: Float[ndarray, "inputs embedding"]) -> Float[ndarray, " inputs"]:
        """Compute ν(x): 0 within the anchors' support, towards 1 far from all of them."""
        return self.support.ood_score(inputs)

    def evaluate(self, inputs: Float[ndarray, "inputs embedding"], available: Collection[str]) -> GateEvaluation:
        """Compute weights over ``available`` and over all clients, slopes, and ν(x), with one pass over the inputs.

        Raises:
            ValueError: none of the mixture's clients is available.
        """
        ood = self.ood_score(inputs)
        evidence = self._evidence(inputs, ood)
        whole = self._weights(evidence, self.clients)
        return GateEvaluation(self._weights(evidence, available), regional_slopes.slopes(evidence, whole), whole, ood)

    def weights(
        self, inputs: Float[ndarray, "inputs embedding"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]:
        """Compute w(x, o) over ``available``; 0 for the other clients.

        Raises:
            ValueError: none of the mixture's clients is available.
        """
        return self._weights(self.evidence(inputs), available)

    def slopes(self, inputs: Float[ndarray, "inputs embedding"]) -> Float[ndarray, "inputs clients"]:
        """Compute a(x) in logits per standardised unit."""
        evidence = self.evidence(inputs)
        return regional_slopes.slopes(evidence, self._weights(evidence, self.clients))

    def _evidence(
        self, inputs: Float[ndarray, "inputs embedding"], ood: Float[ndarray, " inputs"]
    ) -> Float[ndarray, "inputs clients"]:
        known = regional_slopes.features(self.regions, inputs) @ self.coefficients
        return np.asarray((1 - ood[:, None]) * known + ood[:, None] * self.typical)

    def _weights(
        self, evidence: Float[ndarray, "inputs clients"], available: Collection[str]
    ) -> Float[ndarray, "inputs clients"]:
        known = np.array([client in available for client in self.clients])
        return gate.weights(evidence, known, entropy_floor=self.entropy_floor)


def fit_mixture(
    clients: Sequence[str],
    inputs: Float[ndarray, "pairs embedding"],
    scores: Float[ndarray, "pairs clients 2"],
    *,
    entropy_floor: float,
    standardisers: Sequence[Standardiser] | None = None,
) -> tuple[Mixture, FitResult]:
    """Fit a mixture on anchors.

    ``scores[..., 0]`` is the raw score of the chosen response; NaN where a client gave none. ``standardisers``, one for
    each client, are used unchanged where they are given. The regions never see a label.

    Raises:
        ValueError: too few pairs, or a client without any.
    """
    units = tuple(standardisers) if standardisers is not None else fit_standardisers(scores)
    regions = fit_regions(inputs)
    features = regional_slopes.features(regions, inputs)
    fitted = fit(Anchors(features, standardised_differences(units, scores), np.zeros(len(inputs))))
    typical = float((features @ fitted.coefficients).mean())
    mixture = Mixture(tuple(clients), units, regions, fitted.coefficients, fit_support(inputs), typical, entropy_floor)
    return mixture, fitted


def extend_mixture(
    known: Mixture,
    newcomers: Sequence[str],
    inputs: Float[ndarray, "pairs embedding"],
    scores: Float[ndarray, "pairs clients 2"],
    precision: float,
) -> tuple[Mixture, FitResult]:
    """Extend ``known`` by ``newcomers``: fit their standardisers and coefficients, and keep everything else.

    ``scores`` has the known clients first, NaN where one gave none; ``precision`` is the λ of ``known``. The newcomers'
    evidence adds to the others', so the others' weights fall in proportion.

    Raises:
        ValueError: too few pairs, or a newcomer without any.
    """
    old = len(known.clients)
    fresh = fit_standardisers(scores[:, old:])
    features = regional_slopes.features(known.regions, inputs)
    fixed = known.evidence(inputs) * standardised_differences(known.standardisers, scores[:, :old])
    anchors = Anchors(features, standardised_differences(fresh, scores[:, old:]), fixed.sum(axis=1))
    fitted = fit(anchors, precisions=(precision,))
    mixture = replace(
        known,
        clients=(*known.clients, *newcomers),
        standardisers=known.standardisers + fresh,
        coefficients=np.hstack([known.coefficients, fitted.coefficients]),
    )
    return mixture, fitted


def fit_standardisers(scores: Float[ndarray, "pairs clients 2"]) -> tuple[Standardiser, ...]:
    """Fit one standardiser for each client, on the pairs that it scored.

    Raises:
        ValueError: a client without any pair.
    """
    answered: Bool[ndarray, "pairs clients"] = ~np.isnan(scores).any(axis=2)
    return tuple(fit_standardiser(scores[answered[:, k], k]) for k in range(scores.shape[1]))


def standardised_differences(
    standardisers: Sequence[Standardiser], scores: Float[ndarray, "pairs clients 2"]
) -> Float[ndarray, "pairs clients"]:
    """Compute chosen − rejected, standardised as served; 0 where there is no score."""
    differences = np.zeros(scores.shape[:2])
    for k, standardiser in enumerate(standardisers):
        answered = ~np.isnan(scores[:, k]).any(axis=1)
        served = standardiser(scores[answered, k])
        differences[answered, k] = served[:, 0] - served[:, 1]
    return differences
