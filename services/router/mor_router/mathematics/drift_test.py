"""What a fit expects of a client from then on, and how far its later answers speak against it.

With d_n the client's raw difference (chosen − rejected) of anchor n and u_n = w_k a_k / Σ_j w_j a_j its influence
there, as served, a fit expects

    accuracy    Σ v_n y_n / Σ v_n,   y_n = 1 where d_n > 0, ½ where d_n = 0
                v_n = min( u_n / max u, 1 ) · min( |d_n| / 2 spread, 1 )
    loudness    share of |d_n| > spread,   spread = median |d_n|:   the scale that its slope was fitted for

Influence and size are stakes because a specialist may mislead where it has no say, and is often wrong where it is
hardly sure. Later answers are tested by ``betting``: the accuracy against its lower 95 % limit at the fit less 0.05,
the loudness both ways with a margin of 0.2. The three are averaged, which makes one test of them.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from mor_core.wire import Wire
from numpy import ndarray

from mor_router.mathematics.e_process import log_evidence, log_mean

_SLACK = 0.05
_LOUDNESS_SLACK = 0.2
_Z = 1.6449  # one-sided 95 %


class Expectation(Wire):
    accuracy: float
    """Share of right answers, weighted by influence and size."""
    least_accuracy: float
    """What is tested: the lower 95 % limit, less 0.05."""
    influence: float
    """The largest at the fit: the unit of stakes."""
    spread: float
    """Median absolute difference, raw units."""
    loudness: float
    """Share of the differences that are larger."""
    least_concord: float = 0.0
    """Least mean agreement with the others, see ``concord``; 0 where nothing is expected."""


class Departure(Wire):
    """How far later answers speak against an expectation."""

    log_evidence: float
    """log E, see ``betting``: from log(1/alpha) on something has changed, with false-alarm rate alpha."""
    reason: str
    """What speaks most."""


def influences(
    weights: Float[ndarray, "inputs clients"], slopes: Float[ndarray, "inputs clients"]
) -> Float[ndarray, "inputs clients"]:
    """u: each client's share of the mixture's slope; sums to 1, or is 0 where all slopes are."""
    loudness = weights * slopes
    total = loudness.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(loudness, total, out=np.zeros_like(loudness), where=total > 0))


def right(differences: Float[ndarray, " anchors"]) -> Float[ndarray, " anchors"]:
    """1 where the chosen response has the higher score, ½ where they are equal."""
    return np.asarray((np.sign(differences) + 1) / 2)


def expect(differences: Float[ndarray, " anchors"], influence: Float[ndarray, " anchors"]) -> Expectation:
    """
    Raises:
        ValueError: no anchors.
    """
    if not len(differences):
        raise ValueError("nothing can be expected of a client that scored no anchor")
    spread = float(np.median(np.abs(differences)))
    most = float(influence.max())
    stakes = _stakes(differences, influence, most, spread)
    total = stakes.sum()
    accuracy = float(stakes @ right(differences) / total) if total > 0 else 0.5
    count = float(total**2 / np.square(stakes).sum()) if total > 0 else 0.0
    return Expectation(
        accuracy=accuracy,
        least_accuracy=max(0.0, _lower_limit(accuracy, count) - _SLACK),
        influence=most,
        spread=spread,
        loudness=float((np.abs(differences) > spread).mean()),
    )


def depart(
    expected: Expectation, differences: Float[ndarray, " answers"], influence: Float[ndarray, " answers"]
) -> Departure:
    """What ``differences``, in the order in which they came, say against ``expected``."""
    if not len(differences):
        return Departure(log_evidence=0.0, reason="no answers yet")
    correct, stakes = right(differences), _stakes(differences, influence, expected.influence, expected.spread)
    loud = (np.abs(differences) > expected.spread).astype(float)
    quieter = max(0.0, expected.loudness - _LOUDNESS_SLACK)
    louder = max(0.0, 1 - expected.loudness - _LOUDNESS_SLACK)
    paths = np.stack(
        [
            log_evidence(correct, expected.least_accuracy, stakes),
            log_evidence(loud, quieter),
            log_evidence(1 - loud, louder),
        ]
    )
    accuracy = float(stakes @ correct / stakes.sum()) if stakes.any() else 0.5
    scale = f"{loud.mean():.0%} of its differences are over {expected.spread:.3g}, {expected.loudness:.0%} at the fit"
    reasons = (f"right in {accuracy:.0%} where it counts, {expected.accuracy:.0%} at the fit", scale, scale)
    return Departure(
        log_evidence=max(0.0, float(log_mean(paths).max())), reason=reasons[int(paths.max(axis=1).argmax())]
    )


def _stakes(
    differences: Float[ndarray, " anchors"], influence: Float[ndarray, " anchors"], most: float, spread: float
) -> Float[ndarray, " anchors"]:
    """v, between 0 and 1."""
    if not most or not spread:
        return np.zeros(len(differences))
    return np.asarray(np.minimum(influence / most, 1) * np.minimum(np.abs(differences) / (2 * spread), 1))


def _lower_limit(share: float, count: float) -> float:
    """Wilson's, one-sided 95 %."""
    if not count:
        return 0.0
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return (middle - half) / (1 + _Z**2 / count)
