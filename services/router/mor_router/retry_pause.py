"""Pause before groups without a reward are tried again: doubled each time, bounded, and jittered."""

from __future__ import annotations

import random

_LONGEST_S = 4.0
"""Longest mean pause, seconds: a run goes on that soon after its clients return."""


def retry_pause_s(first_s: float, attempt: int) -> float:
    """Draw the seconds between the attempt of this number, from 1, and the next; ``first_s``: mean after the first."""
    return random.uniform(0.5, 1.5) * min(first_s * 2.0 ** min(attempt - 1, 20), _LONGEST_S)
