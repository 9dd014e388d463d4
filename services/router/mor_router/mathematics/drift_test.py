"""Sequential test for drift: evidence that a client's later answers contradict its behaviour at the fit.

Deviation from a plain e-process (``e_process``): three hypotheses are tested at once, and their mean is the evidence.

With d_n the client's raw difference (chosen − rejected) of anchor n and u_n = w_k a_k / Σ_j w_j a_j its influence
there, as served, the baseline at the fit is

    accuracy            Σ v_n y_n / Σ v_n,   y_n = 1 where d_n > 0, ½ where d_n = 0
                        v_n = min( u_n / max u, 1 ) · min( |d_n| / 2 spread, 1 )
    scale exceedance    share of |d_n| > spread,   spread = median |d_n|:   the scale that its slope was fitted for

The stakes v use influence and size because a specialist may mislead where it has no influence, and is often wrong
where its difference is small. The accuracy is tested against its lower 95 % limit at the fit less 0.05, and the scale
exceedance in both directions with a margin of 0.2. The mean of the three e-processes is one valid test.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from mor_core.intervals import Z_95_ONE_SIDED, wilson
from mor_core.wire import Wire
from numpy import ndarray
from pydantic import Field

from mor_router.mathematics.e_process import log_evidence, log_mean

_ACCURACY_SLACK = 0.05
"""Loss of accuracy below its lower limit at the fit that does not count as drift."""
_EXCEEDANCE_SLACK = 0.2
"""Change of the scale exceedance, in either direction, that does not count as drift."""


class DriftBaseline(Wire):
    """A client's behaviour on the anchors at the fit. Stored gate versions keep the aliases as JSON keys."""

    accuracy: float
    """Share of right answers, weighted by influence and size."""
    least_accuracy: float
    """Accuracy that later answers are tested against: the lower 95 % limit, less 0.05."""
    influence: float
    """Largest influence at the fit: the unit of stakes."""
    spread: float
    """Median absolute difference, raw units."""
    scale_exceedance: float = Field(alias="loudness")
    """Share of the absolute differences above ``spread``."""
    least_agreement: float = Field(0.0, alias="least_concord")
    """Mean leave-one-out agreement (``loo_agreement``) that live groups are tested against; 0: not tested."""
    disagreement: float | None = None
    """Share of the anchors on which the client and the others disagree, by influence; ``None``: not measured."""


class DriftResult(Wire):
    """Evidence that a client's later answers contradict its baseline."""

    log_evidence: float
    """log E, see ``e_process``: at log(1/alpha) and above the client has drifted, with false-alarm rate alpha."""
    reason: str
    """The hypothesis with the most evidence, in words."""


def right(differences: Float[ndarray, " anchors"]) -> Float[ndarray, " anchors"]:
    """Return 1 where the chosen response has the higher score, ½ where both are equal, and 0 elsewhere."""
    return np.asarray((np.sign(differences) + 1) / 2)


def fit_baseline(differences: Float[ndarray, " anchors"], influence: Float[ndarray, " anchors"]) -> DriftBaseline:
    """Measure a client's accuracy and scale on the anchors of a fit.

    Raises:
        ValueError: no anchors.
    """
    if not len(differences):
        raise ValueError("got no scored anchors; a baseline needs at least one")
    spread = float(np.median(np.abs(differences)))
    most = float(influence.max())
    stakes = _stakes(differences, influence, most, spread)
    total = stakes.sum()
    accuracy = float(stakes @ right(differences) / total) if total > 0 else 0.5
    count = float(total**2 / np.square(stakes).sum()) if total > 0 else 0.0
    return DriftBaseline(
        accuracy=accuracy,
        least_accuracy=max(0.0, _lower_limit(accuracy, count) - _ACCURACY_SLACK),
        influence=most,
        spread=spread,
        scale_exceedance=float((np.abs(differences) > spread).mean()),
    )


def drift_result(
    baseline: DriftBaseline, differences: Float[ndarray, " answers"], influence: Float[ndarray, " answers"]
) -> DriftResult:
    """Test ``differences``, in order of arrival, against ``baseline``."""
    if not len(differences):
        return DriftResult(log_evidence=0.0, reason="no answers yet")
    correct, stakes = right(differences), _stakes(differences, influence, baseline.influence, baseline.spread)
    exceeds = (np.abs(differences) > baseline.spread).astype(float)
    least_above = max(0.0, baseline.scale_exceedance - _EXCEEDANCE_SLACK)
    least_below = max(0.0, 1 - baseline.scale_exceedance - _EXCEEDANCE_SLACK)
    paths = np.stack(
        [
            log_evidence(correct, baseline.least_accuracy, stakes),
            log_evidence(exceeds, least_above),
            log_evidence(1 - exceeds, least_below),
        ]
    )
    accuracy = float(stakes @ correct / stakes.sum()) if stakes.any() else 0.5
    scale = (
        f"{exceeds.mean():.0%} of its differences are over {baseline.spread:.3g}, "
        f"{baseline.scale_exceedance:.0%} at the fit"
    )
    reasons = (f"right in {accuracy:.0%} where it counts, {baseline.accuracy:.0%} at the fit", scale, scale)
    return DriftResult(
        log_evidence=max(0.0, float(log_mean(paths).max())), reason=reasons[int(paths.max(axis=1).argmax())]
    )


def _stakes(
    differences: Float[ndarray, " anchors"], influence: Float[ndarray, " anchors"], most: float, spread: float
) -> Float[ndarray, " anchors"]:
    """Compute v, between 0 and 1."""
    if not most or not spread:
        return np.zeros(len(differences))
    size = np.minimum(np.abs(differences), 2 * spread) / (2 * spread)  # no overflow where the spread is tiny
    return np.asarray(np.minimum(influence, most) / most * size)


def _lower_limit(share: float, count: float) -> float:
    """Compute Wilson's one-sided 95 % limit; 0 without observations."""
    return wilson(share * count, count, Z_95_ONE_SIDED)[0] if count else 0.0
