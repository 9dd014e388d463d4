"""Labeller that calls a Python function of the entry-point group ``mor_router.checkers``."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from mor_core.errors import Invalid, Unavailable
from mor_core.failures import describe_failure, quote_failure
from mor_core.tasks import in_thread

from mor_router.learning.labels.labeller import Pair, SampledGroup, ordered_pairs

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
    """Labeller by the scores of a function."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._check = load_checker(name)

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> tuple[Pair, ...]:
        messages = [message.model_dump(mode="json") for message in sampled.messages]
        try:
            async with asyncio.timeout(timeout_s):
                scores = await in_thread(self._check, messages, list(sampled.responses), dict(sampled.images))
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
        return ordered_pairs([score if score is not None and math.isfinite(score) else None for score in scores])

    async def close(self) -> None:
        return None
