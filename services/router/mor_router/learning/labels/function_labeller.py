"""Labeller that calls a Python function of the entry-point group ``mor_router.checkers``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure, quote_failure

from mor_router.learning.labels.labeller import Pair, SampledGroup, best_and_worst

GROUP = "mor_router.checkers"
"""Entry-point group of checkers."""

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
    """Labeller by the highest and the lowest score of a function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._check = load_checker(name)

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> Pair | None:
        messages = [message.model_dump(mode="json") for message in sampled.messages]
        try:
            async with asyncio.timeout(timeout_s):
                scores = await asyncio.to_thread(self._check, messages, list(sampled.responses), dict(sampled.images))
        except TimeoutError as error:
            raise Unavailable(
                f"checker {self._name!r} did not answer within {timeout_s:g} s; raise MOR_DEADLINE_S"
            ) from error
        except Exception as error:  # the operator's function may raise anything
            raise Unavailable(f"checker {self._name!r} failed: {describe_failure(error)}") from error
        if len(scores) != len(sampled.responses):
            raise Unavailable(
                f"checker {self._name!r} gave {len(scores)} scores for {len(sampled.responses)} responses;"
                " return one for each"
            )
        known = [(place, score) for place, score in enumerate(scores) if score is not None and math.isfinite(score)]
        pair = best_and_worst([score for _, score in known]) if len(known) > 1 else None
        return None if pair is None else (known[pair[0]][0], known[pair[1]][0])

    async def close(self) -> None:
        return None
