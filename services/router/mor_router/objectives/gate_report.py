"""Report of a fit: its quality, and each client's accuracy. The anchors' domain labels are used here only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from mor_core.intervals import wilson
from mor_core.wire import Documented, Wire
from numpy import ndarray

from mor_router.mathematics.coefficients import FitResult
from mor_router.mathematics.mixture import Mixture

_NO_LABEL = "(no domain)"


class Proportion(Wire):
    """Proportion with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    of: int
    """Number of pairs."""


class ClientReport(Documented):
    """Report on one client of a fit."""

    client: str
    accuracy: Proportion
    """Anchors that the client's own scores rank as labelled; a tie counts one half."""
    accuracy_by_domain: dict[str, Proportion]
    evidence_by_domain: dict[str, float]
    """Mean over the domain's anchors of the log-odds that one standardised unit of the client adds."""
    weight_by_domain: dict[str, float]
    """Mean gate weight on the domain's anchors."""
    spread: float
    """Median absolute difference of the client's raw scores within an anchor, in raw units."""


class FitReport(Documented):
    """Report on a fit."""

    pairs: int
    """Anchor pairs of the fit."""
    clients: tuple[ClientReport, ...]
    left_out: dict[str, str]
    """Client that is not in the mixture -> reason."""
    held_out_accuracy: Proportion
    """Anchors that the mixture ranks as labelled, each by a fit without it."""
    uniform_accuracy: Proportion
    """Anchors that the plain average of the standardised scores ranks as labelled."""
    loss: float
    """Mean Bradley-Terry loss on the anchors, in nats."""
    held_out_loss: float
    """The same by cross-validation; log 2 = 0.693 is chance."""
    regions: int
    """Regions of input space, of all scales."""
    precision: float
    """Strength of the priors, chosen by cross-validation."""
    seconds: float
    """Time of the fit without scoring, in seconds."""


def proportion(hits: float, of: int) -> Proportion:
    """Return ``hits`` / ``of`` with the interval of Wilson (1927); 0 to 1 where ``of`` is 0."""
    if not of:
        return Proportion(value=0.5, low=0.0, high=1.0, of=0)
    low, high = wilson(hits, of)
    return Proportion(value=hits / of, low=low, high=high, of=of)


def build_report(
    mixture: Mixture,
    fitted: FitResult,
    *,
    inputs: Float[ndarray, "pairs features"],
    scores: Float[ndarray, "pairs clients 2"],
    domains: Sequence[str | None],
    left_out: dict[str, str],
    seconds: float,
) -> FitReport:
    """Build the report of a fit on ``scores`` of (chosen, rejected)."""
    differences = scores[..., 0] - scores[..., 1]
    answered: Bool[ndarray, "pairs clients"] = ~np.isnan(differences)
    weights, evidence = mixture.weights(inputs, mixture.clients), mixture.evidence(inputs)
    labels = np.array([domain or _NO_LABEL for domain in domains])
    standardised = np.stack([s(scores[:, k]) for k, s in enumerate(mixture.standardisers)], axis=1)
    average = np.nanmean(standardised[..., 0] - standardised[..., 1], axis=1)
    clients = []
    for k, name in enumerate(mixture.clients):
        within = {label: (labels == label) for label in sorted(set(labels.tolist()))}
        clients.append(
            ClientReport(
                client=name,
                accuracy=_accuracy(differences[answered[:, k], k]),
                accuracy_by_domain={
                    label: _accuracy(differences[answered[:, k] & rows, k]) for label, rows in within.items()
                },
                evidence_by_domain={label: float(evidence[rows, k].mean()) for label, rows in within.items()},
                weight_by_domain={label: float(weights[rows, k].mean()) for label, rows in within.items()},
                spread=mixture.standardisers[k].spread,
            )
        )
    return FitReport(
        pairs=len(inputs),
        clients=tuple(clients),
        left_out=left_out,
        held_out_accuracy=proportion(fitted.held_out_accuracy * fitted.held_out_pairs, fitted.held_out_pairs),
        uniform_accuracy=_accuracy(average),
        loss=fitted.loss,
        held_out_loss=fitted.held_out_loss,
        regions=len(mixture.regions.centres),
        precision=fitted.precision,
        seconds=seconds,
    )


def _accuracy(differences: Float[ndarray, " pairs"]) -> Proportion:
    return proportion(float((differences > 0).sum() + 0.5 * (differences == 0).sum()), len(differences))
