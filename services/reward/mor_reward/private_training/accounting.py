"""Accounting of the Gaussian mechanism: from (ε, δ) to the noise, and back.

With every unit in every step, steps of the Gaussian mechanism compose exactly (Gaussian differential privacy, Dong et
al. 2019), and nothing is given away to a bound. With Poisson sampling, Opacus' Rényi accountant bounds them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import warnings
from collections.abc import Iterator

from mor_core.errors import Invalid
from mor_core.failures import describe_failure

_BISECTIONS = 200
"""Halvings of an interval, until floats have no number between its ends."""


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest δ of a Gaussian mechanism with sensitivity/σ = ``mu`` at ε (Balle and Wang 2018, eq. 6)."""
    upper = -epsilon / mu + mu / 2
    lower = -epsilon / mu - mu / 2
    return _normal_cdf(upper) - math.exp(min(epsilon + _log_normal_cdf(lower), 0.0))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest μ = sensitivity/σ with which a Gaussian mechanism is (ε, δ)-differentially private."""
    low, high = 0.0, 1.0
    while gaussian_delta(high, epsilon) < delta:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if gaussian_delta(middle, epsilon) <= delta:
            low = middle
        else:
            high = middle
    return low


def noise_multiplier(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """Return the standard deviation of a step's noise, in units of the clipping bound.

    ``rate`` is the probability with which a step samples a unit; 1 takes all of them.

    Raises:
        Invalid: ``rate`` is less than 1 and Opacus is not installed, or no noise that it tries suffices.
    """
    if rate >= 1:
        return math.sqrt(steps) / gaussian_mu(epsilon, delta)
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise _need_opacus(error) from error
    try:
        with _quiet():
            found = get_noise_multiplier(
                target_epsilon=epsilon, target_delta=delta, sample_rate=rate, steps=steps, accountant="rdp"
            )
            return float(found)
    except (ValueError, RuntimeError) as error:
        raise Invalid(
            f"ε = {epsilon:g} with δ = {delta:.3g} needs more noise than the accountant tries for {steps} steps; give "
            "a larger --dp-epsilon, or fewer --epochs"
        ) from error


def spent_epsilon(noise: float, delta: float, rate: float, steps: int) -> float:
    """Return the ε of ``steps`` steps with a noise multiplier of ``noise``."""
    if not steps:
        return 0.0
    if rate < 1:
        try:
            from opacus.accountants import RDPAccountant
        except ImportError as error:
            raise _need_opacus(error) from error
        accountant = RDPAccountant()
        accountant.history = [(noise, rate, steps)]
        with _quiet():
            return float(accountant.get_epsilon(delta))
    mu = math.sqrt(steps) / noise
    low, high = 0.0, 1.0
    while gaussian_delta(mu, high) > delta:
        high *= 2
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if gaussian_delta(mu, middle) > delta:
            low = middle
        else:
            high = middle
    return high


def accountant_name(rate: float) -> str:
    """Return the accountant of ``noise_multiplier``, for the card."""
    if rate >= 1:
        return "Gaussian differential privacy, exact (mor-reward)"
    return f"Rényi (RDP), Opacus {importlib.metadata.version('opacus')}"


def default_delta(units: int) -> float:
    """Return the largest power of ten that is at most a tenth of 1/``units``."""
    return float(10.0 ** -math.ceil(math.log10(10 * units)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Opacus' advice to try more Rényi orders: its bound holds without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def _need_opacus(error: ImportError) -> Invalid:
    return Invalid(
        f"--dp-part trained needs Opacus, which cannot be imported ({describe_failure(error)}); install "
        "mor-reward[dp], or leave --dp-part out"
    )


def _normal_cdf(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def _log_normal_cdf(x: float) -> float:
    """Return log Φ(x); far out a lower bound by Mills' ratio, so that ``gaussian_delta`` never comes out too small."""
    if x > -30:
        return math.log(_normal_cdf(x))
    return -x * x / 2 - math.log(-x) - 0.5 * math.log(2 * math.pi) + math.log1p(-1 / (x * x))
