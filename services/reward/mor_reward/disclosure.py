"""Content of a card and answers beside the scores: by default no more than a router needs.

An exact share of n held-out pairs tells n, and a hash of the weights tells two routers that they call one model.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mor_core.errors import MorError, Overloaded, Unavailable
from mor_core.intervals import wilson
from mor_core.wire import Calibration, Card, MembershipAttack, ModelRef

_PLACES = 2
"""Decimal places of the coarse shares."""
_MOST_OF_DEADLINE = 0.8
"""Share of the caller's time that an answer held to steps may take; the rest is for its way back."""


def model_for(model: ModelRef, caller: str) -> ModelRef:
    """Return the model as one caller sees it: its version is an id of the caller's own, and changes with the model."""
    digest = hashlib.sha256(f"version of a model {model.version} for {caller}".encode())
    return ModelRef(name=model.name, version=digest.hexdigest()[:16])


def coarse_card(card: Card, caller: str) -> Card:
    """Return the card as ``caller`` sees it, with coarse figures."""
    model = model_for(card.model, caller)
    audit = card.audit
    if audit is not None:
        seen = model_for(ModelRef(name=card.model.name, version=audit.model_version), caller)
        attacks = tuple(_coarse_attack(attack) for attack in audit.attacks)
        bound = None if audit.epsilon_lower is None else float(f"{audit.epsilon_lower:.{_PLACES}g}")
        audit = audit.model_copy(update={"model_version": seen.version, "attacks": attacks, "epsilon_lower": bound})
    calibration = None if card.calibration is None else coarse_calibration(card.calibration)
    return card.model_copy(update={"model": model, "audit": audit, "calibration": calibration})


def coarse_calibration(exact: Calibration) -> Calibration:
    """Round a calibration; its interval is that of the rounded accuracy on the rounded number of pairs.

    It is never narrower than the exact one, to which a training with differential privacy has added its noise.
    """
    pairs = _one_figure(exact.pairs)
    accuracy = round(exact.pair_accuracy, _PLACES)
    low, high = _outwards(exact.pair_accuracy_interval)
    if pairs:
        lower, upper = wilson(accuracy * pairs, pairs)
        low, high = min(low, lower), max(high, upper)
    return Calibration(
        temperature=float(f"{exact.temperature:.{_PLACES}g}"),
        ece=round(exact.ece, _PLACES),
        pair_accuracy=accuracy,
        pair_accuracy_interval=(round(low, _PLACES), round(high, _PLACES)),
        pairs=pairs,
    )


def coarse_refusal(error: Unavailable) -> Unavailable:
    """Return the error as a caller sees it: without load, addresses and types of errors."""
    if isinstance(error, Overloaded):
        cure = "send fewer responses at a time, later, or with a longer deadline"
        return Overloaded(f"the service has too much to do; {cure}", error.retry_after_s)
    return Unavailable("the service cannot score now, and its log has the reason; try again later", error.retry_after_s)


def whole_steps(deadline_ms: float | None, step_ms: int) -> float | None:
    """Return the whole steps within most of a caller's deadline: whether they suffice tells no time between two steps.

    Raises:
        Overloaded: there is none.
    """
    if deadline_ms is None or not step_ms or math.isinf(deadline_ms):
        return deadline_ms
    if not (steps := _MOST_OF_DEADLINE * deadline_ms // step_ms):
        wanted = math.ceil(step_ms / _MOST_OF_DEADLINE)
        raise Overloaded(f"the deadline is in {deadline_ms:g} ms; give at least {wanted} ms to this service")
    return steps * step_ms


@asynccontextmanager
async def held_to_step(step_ms: int) -> AsyncIterator[None]:
    """Hold what the block returns, or refuses, until a multiple of ``step_ms`` milliseconds from now has passed."""
    started = time.monotonic()
    try:
        yield
    except MorError:
        await _wait_for_step(started, step_ms / 1000)
        raise
    await _wait_for_step(started, step_ms / 1000)


async def _wait_for_step(started: float, step_s: float) -> None:
    if step_s:
        took = time.monotonic() - started
        await asyncio.sleep(math.ceil(took / step_s) * step_s - took)


def _coarse_attack(exact: MembershipAttack) -> MembershipAttack:
    return exact.model_copy(
        update={
            "auc": round(exact.auc, _PLACES),
            "auc_interval": _outwards(exact.auc_interval),
            "true_positives": round(exact.true_positives, _PLACES),
            "members": _one_figure(exact.members),
            "non_members": _one_figure(exact.non_members),
        }
    )


def _outwards(interval: tuple[float, float]) -> tuple[float, float]:
    """Round the ends of an interval away from each other."""
    low, high = interval
    steps = 10**_PLACES
    return math.floor(low * steps) / steps, math.ceil(high * steps) / steps


def _one_figure(count: int) -> int:
    """Round down to one significant figure."""
    unit: int = 10 ** (len(str(count)) - 1)
    return count // unit * unit
