"""What a fit tells about itself and about the clients. Domain labels of the anchors are used here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from mor_core.wire import Wire
from numpy import ndarray
from pydantic import ConfigDict

from mor_router.mathematics.coefficients import FitResult
from mor_router.mathematics.mixture import Mixture

_NO_LABEL = "(no domain)"


class Share(Wire):
    """A share with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    of: int
    """Number of pairs."""


class ClientReport(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)

    client: str
    accuracy: Share
    """Anchors that its own scores rank as labelled; a tie counts one half."""
    accuracy_by_domain: dict[str, Share]
    evidence_by_domain: dict[str, float]
    """Mean over the domain's anchors of what one of its standardised units adds to the log-odds."""
    weight_by_domain: dict[str, float]
    """Mean gate weight on the domain's anchors."""
    spread: float
    """Median absolute difference of its raw scores within an anchor, raw units."""


class FitReport(Wire):
    model_config = ConfigDict(use_attribute_docstrings=True)

    pairs: int
    """Anchor pairs that were fitted on."""
    clients: tuple[ClientReport, ...]
    left_out: dict[str, str]
    """Clients that are not in the mixture, with the reason."""
    held_out_accuracy: Share
    """Anchors that the mixture ranks as labelled, each by a fit that did not see it."""
    uniform_accuracy: Share
    """Anchors that the plain average of the standardised scores ranks as labelled."""
    loss: float
    """Mean Bradley-Terry loss on the anchors, nats."""
    held_out_loss: float
    """The same by cross-validation; log 2 = 0.693 is chance."""
    regions: int
    """Regions of input space, of all scales."""
    precision: float
    """Strength of the priors, chosen by cross-validation."""
    seconds: float
    """Time of the fit, scoring apart."""


def share(hits: float, of: int) -> Share:
    """``hits`` of ``of`` with the interval of Wilson (1927); 0 to 1 when there is nothing to judge by."""
    if not of:
        return Share(value=0.5, low=0.0, high=1.0, of=0)
    z = 1.959964
    value = hits / of
    middle = (value + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(value * (1 - value) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return Share(value=value, low=max(0.0, middle - half), high=min(1.0, middle + half), of=of)


def report(
    mixture: Mixture,
    fitted: FitResult,
    *,
    inputs: Float[ndarray, "pairs features"],
    scores: Float[ndarray, "pairs clients 2"],
    domains: Sequence[str | None],
    left_out: dict[str, str],
    seconds: float,
) -> FitReport:
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
        held_out_accuracy=share(fitted.held_out_accuracy * fitted.held_out_pairs, fitted.held_out_pairs),
        uniform_accuracy=_accuracy(average),
        loss=fitted.loss,
        held_out_loss=fitted.held_out_loss,
        regions=len(mixture.regions.centres),
        precision=fitted.precision,
        seconds=seconds,
    )


def _accuracy(differences: Float[ndarray, " pairs"]) -> Share:
    return share(float((differences > 0).sum() + 0.5 * (differences == 0).sum()), len(differences))
