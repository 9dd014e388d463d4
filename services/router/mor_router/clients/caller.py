"""Senders of groups, as calls to clients distinguish them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Sender of a group: the runs, or the holder of a token.

    Each has a circuit of its own to each client. So what one caller provokes, by its input or its deadline, keeps no
    client from another caller's groups. Only the groups of runs teach the router anything.
    """

    name: str
    """Name of the token; empty for the runs."""
    own_deadline: bool = False
    """True if the caller gave a shorter deadline than the router's. A client that misses it has not failed."""


RUNS = Caller("")
"""The groups of runs, and the router's own calls: honeypots, fits and probes."""
