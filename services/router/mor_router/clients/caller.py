"""Senders of groups, as calls to clients distinguish them."""

from __future__ import annotations

from dataclasses import dataclass


class Caller:
    """Sender of a group: the runs, or the holder of a token (``TokenCaller``).

    Each has a circuit of its own to each client, and all other callers together have a share of the calls at a time,
    which end when the runs wait for them. So what one caller provokes keeps no client from the runs. Only the groups of
    runs teach the router anything.
    """


@dataclass(frozen=True)
class TokenCaller(Caller):
    """Holder of a token. It is never the runs, whatever its name."""

    name: str


RUNS = Caller()
"""The groups of runs, and the router's own calls: honeypots, fits and probes."""
