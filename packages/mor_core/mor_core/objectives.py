"""What a run, a prompt or a request aligns to: one objective, a text, or a blend of objectives."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

_NAME = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
_VERSION = r"@[1-9][0-9]{0,8}"

ObjectiveName = Annotated[str, StringConstraints(pattern=f"^{_NAME}$")]
PinnedName = Annotated[str, StringConstraints(pattern=f"^{_NAME}({_VERSION})?$")]
"""``name``, with the gate version in force, or ``name@version``, with that one whatever is put in force."""

_ROUNDING = 1e-6


def _check_sum(shares: dict[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    if abs(total - 1) > _ROUNDING:
        raise ValueError(f"the shares of a blend sum to 1, these to {total:g}; divide each by {total:g}")
    return shares


Blend = Annotated[
    dict[PinnedName, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_check_sum)
]
"""Objective -> its share of the reward; the shares sum to 1."""

AskedObjective = Annotated[str, Field(max_length=4000)] | Blend
"""The name of an objective, with or without a gate version, a text that says what is wanted, or a blend of names."""


def unpinned(asked: str) -> tuple[str, int | None]:
    """The name and, where one is given, the version of a ``PinnedName``; any other text as it is."""
    if re.fullmatch(_NAME + _VERSION, asked):
        name, _, version = asked.rpartition("@")
        return name, int(version)
    return asked, None
