"""Numbers of an event, under names that trackers group at the slash."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mor_core.wire import EventRecord

_LEFT_OUT = ("begun_at", "step")
"""Numbers that trackers have as the time and the step of a figure."""
_NAMED_BY_GROUP = ("clients", "domains", "sources", "seconds")
"""Step metrics that are maps and become separate groups."""
_NO_NAME = re.compile(r"[^\w\-. ]")
"""Characters that MLflow does not accept in a name."""


def figures(event: EventRecord) -> dict[str, float]:
    """Return the numbers of a step or an evaluation by name; unknown values are left out.

    Names are ``train/kl``, ``clients/NAME/weight``, ``seconds/waiting``, ``evaluation/reward`` and the like.
    """
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
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)
