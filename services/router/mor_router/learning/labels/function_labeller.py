"""Labeller that calls a Python function of the entry-point group ``mor_router.checkers``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, SupportsFloat

from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure, quote_failure
from mor_core.timed_calls import TimedCalls

from mor_router.learning.labels.labeller import Pair, SampledGroup, ordered_pairs

GROUP = "mor_router.checkers"
"""Entry-point group of checkers."""

_CALLS: dict[tuple[str, float], TimedCalls] = {}
"""Calls of each checker by its time limit: one that hangs takes no thread from other work, and few of its own."""

Check = Callable[[list[dict[str, Any]], list[str], dict[str, bytes]], Sequence[float | None]]


def load_checker(name: str) -> Check:
    """Load an installed checker by its name.

    Raises:
        Invalid: no such entry point is installed, or it cannot be loaded.
    """
    found = metadata.entry_points(group=GROUP)
    if name not in found.names:
        known = ", ".join(sorted(found.names)) or "none"
        raise Invalid(f"got checker {name!r}; installed with the router (entry points of {GROUP}) are: {known}")
    try:
        check: Check = found[name].load()
    except Exception as error:  # an imported module may raise anything
        raise Invalid(f"checker {name!r} cannot be loaded: {quote_failure(error)}") from error
    return check


class FunctionLabeller:
    """Labeller by the scores of a function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._check = load_checker(name)

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> tuple[Pair, ...]:
        messages = [message.model_dump(mode="json") for message in sampled.messages]
        calls = _CALLS.setdefault((self._name, timeout_s), TimedCalls("its answer", timeout_s, "MOR_DEADLINE_S"))
        try:
            given = await calls.run_async(self._check, messages, list(sampled.responses), dict(sampled.images))
            scores = [_score(value) for value in given]
        except Exception as error:  # the operator's function may raise and return anything
            raise Unavailable(f"checker {self._name!r} failed: {describe_failure(error)}") from error
        if len(scores) != len(sampled.responses):
            raise Unavailable(
                f"checker {self._name!r} gave {len(scores)} scores for {len(sampled.responses)} responses;"
                " return one for each"
            )
        return ordered_pairs(scores)

    async def close(self) -> None:
        return None


def _score(value: object) -> float | None:
    """Return a score as a number; ``None`` for none, and for one that is not finite.

    Raises:
        Invalid: it is something else.
    """
    if value is None:
        return None
    if isinstance(value, bool | str | bytes) or not isinstance(value, SupportsFloat):
        raise Invalid(f"it gave a {type(value).__name__} as a score; return a number or None for each response")
    score = float(value)
    return score if math.isfinite(score) else None
