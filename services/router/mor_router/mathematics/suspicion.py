"""Suspicion: clients that suddenly oppose the others, by kind of group.

Deviation from Page's CUSUM test (1954): one statistic for each client and kind of group (all its ``situations``
together), because a client may misbehave in some situations only. With o = 1 where the client opposes the others
(``opposition``) and v the stake:

    S ← max( 0, S + log( 1 + λ v (o − ρ) ) )       ρ = 0.3,   λ = 0.55 / ρ

S forgets an honest past, unlike an e-process, so a client that turns late is suspected as soon as one that always
misbehaved. Suspicion needs no label and takes no weight: it says that some client is wrong, not which one. It raises
the probability of audits of later groups in the same situation, and their labels show who is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

_OPPOSED = 0.3
"""Share of groups in which an honest client may oppose the others: 4 % beside other experts of the domain, and 25 %
beside clients that know little of it. A client that inverts its scores opposes them in 69 %."""
_SHARE = 0.55
"""λ as a share of the largest one that keeps every factor positive."""
_SUSPECTED = math.log(50)
"""S from which on a client is suspected: five opposed groups in succession, and seldom an honest client."""
_MOST = 1.5 * _SUSPECTED
"""Bound of S, so that a client that is honest again is cleared about as fast as it came under suspicion."""


def situations(responses: Sequence[str], *, known_picture: bool) -> tuple[str, ...]:
    """Return the situations of a group: what a client may condition its behaviour on."""
    return (
        "repeated responses" if len(set(responses)) < len(responses) else "distinct responses",
        "a known picture" if known_picture else "a new picture",
        f"{len(responses)} responses",
    )


class Suspicion:
    """Statistics of one client under one gate version, by kind of group."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, ...], float] = {}

    def add(self, opposes: bool, stake: float, kind: tuple[str, ...]) -> None:
        """Update the statistic of this kind with one group; ``stake`` lies in [0, 1]."""
        gain = math.log1p(_SHARE / _OPPOSED * stake * (opposes - _OPPOSED))
        self._by_kind[kind] = min(_MOST, max(0.0, self._by_kind.get(kind, 0.0) + gain))

    def suspects(self, kind: tuple[str, ...]) -> bool:
        """Return whether the client is suspected in groups of this kind."""
        return self._by_kind.get(kind, 0.0) >= _SUSPECTED
