"""Reference to an objective in a run, a prompt or a request: a name, a text, or a blend of objectives."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import AfterValidator, Field

from mor_core.patterns import matching, plain_name

_NAME = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
_VERSION = r"@[1-9][0-9]{0,8}"
_WORDS = plain_name(63, "'.', '_', '-'")

ObjectiveName = Annotated[str, matching(f"^{_NAME}$", _WORDS)]
PinnedName = Annotated[
    str, matching(f"^{_NAME}({_VERSION})?$", f"{_WORDS}, or such a name with a version, such as 'helpful@3'")
]
"""``name`` selects the active gate version, ``name@version`` a fixed one."""

_ROUNDING = 1e-6
"""Tolerance of the sum of a blend, for shares written with few digits."""


def _check_sum(shares: dict[str, float]) -> dict[str, float]:
    total = math.fsum(shares.values())
    if abs(total - 1) > _ROUNDING:
        raise ValueError(f"the shares of the blend sum to {total:g}, not 1; divide each by {total:g}")
    return shares


Blend = Annotated[
    dict[PinnedName, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1), AfterValidator(_check_sum)
]
"""Objective -> its share of the reward; the shares sum to 1."""

RequestedObjective = Annotated[str, Field(max_length=4000)] | Blend
"""Name of an objective, with or without a gate version; a text with the alignment goal; or a blend of names."""


def split_version(requested: str) -> tuple[str, int | None]:
    """Split a ``PinnedName`` into name and version, ``None`` without a version; return any other text unchanged."""
    if re.fullmatch(_NAME + _VERSION, requested):
        name, _, version = requested.rpartition("@")
        return name, int(version)
    return requested, None
