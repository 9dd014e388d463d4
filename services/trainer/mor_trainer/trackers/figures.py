"""The numbers of an event, by names that trackers group at the slash."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mor_core.wire import EventRecord

_LEFT_OUT = ("begun_at", "step")
_NAMED_BY_GROUP = ("clients", "domains", "seconds")
_NO_NAME = re.compile(r"[^\w\-. ]")
"""What MLflow does not take in a name."""


def figures(event: EventRecord) -> dict[str, float]:
    """Finite numbers of a step or an evaluation: ``train/kl``, ``clients/NAME/weight``, ``seconds/waiting``,
    ``evaluation/reward``. What is not known is left out."""
    group = "train" if event.kind == "step" else "evaluation"
    found: dict[str, float] = {}
    for name, value in event.data.items():
        if name not in _LEFT_OUT:
            within = name if group == "train" and name in _NAMED_BY_GROUP else f"{group}/{name}"
            found |= dict(_numbers(within, value))
    return found


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{_NO_NAME.sub('_', str(key))}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)
