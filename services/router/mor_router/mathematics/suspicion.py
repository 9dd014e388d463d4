"""Suspicion: clients that suddenly oppose the others, or agree with them less than on the anchors, by kind of group.

Deviation from Page's CUSUM test (1954): two statistics for each client and kind of group (all its ``situations``
together), because a client may misbehave in some situations only. With o = 1 where the client's agreement with the
others (``opposition.cosines``) is below a bound, and v the stake:

    S ← max( 0, S + log( 1 + λ v (o − ρ) ) )           λ = share / ρ

    statistic      bound    ρ                       share    found
    opposition     −½       0.3                     0.55     a client that inverts its scores
    discord        ¼        on anchors, plus 0.15   0.3      a client that adds noise to its scores

Noise opposes nobody and agrees with nobody. The agreement of honest clients differs: the only expert for its inputs
agrees with the others by chance alone. So discord is measured against the share of the anchors on which the client and
the others disagreed at the fit, where that is a fifth at most. The noise of one client makes others disagree as well,
in fewer groups: of all clients in discord only the one with the largest S is suspected.

S forgets an honest past, unlike an e-process, so a client that turns late is suspected as soon as one that always
misbehaved. Suspicion needs no label and takes no weight: it says that some client is wrong, not which one. It raises
the probability of audits of later groups in the same situation, and their labels show who is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

_OPPOSED = 0.3
"""Share of groups in which an honest client may oppose the others: 4 % beside other experts of the domain, and 25 %
beside clients that know little of it. A client that inverts its scores opposes them in 69 %."""
_AGAINST = -0.5
"""Cosine below which a client opposes the others. It is the same for a client with much and with little weight: were
it a share of what the client says, a heavy attacker would seem to agree, and those that it misleads to oppose."""
_APART = 0.25
"""Cosine below which a client disagrees with the others: noise does in 70 % of the groups."""
_MOST_DISAGREEMENT = 0.2
"""Disagreement on the anchors up to which discord is tested: a client that disagrees more has little agreement to lose,
and is in discord by chance, or because another one is."""
_SLACK = 0.15
"""Groups of a moving policy are harder than anchors: honest clients disagree in 0.1 more of them."""
_EVERY: tuple[str, ...] = ()
"""Key of the statistic over all groups."""
_OF_ITS_OWN = 30
"""Groups of a kind from which on the discord in them alone counts: audits of the kinds in which a client is honest tell
nothing. Before, that over all groups counts too."""
_SHARES = (0.55, 0.3)
"""λ of opposition and discord, as a share of the largest one that keeps every factor positive."""
_SUSPECTED = math.log(50)
"""S from which on a client is suspected: five opposed groups in succession, and seldom an honest client."""
_MOST = 1.5 * _SUSPECTED
"""Bound of the S of opposition, so that a client that is honest again is cleared about as fast as it was suspected.
The S of discord has none: it tells which client is in discord most."""


def situations(responses: Sequence[str], *, known_picture: bool) -> tuple[str, ...]:
    """Return the situations of a group: what a client may condition its behaviour on."""
    return (
        "repeated responses" if len(set(responses)) < len(responses) else "distinct responses",
        "a known picture" if known_picture else "a new picture",
        f"{len(responses)} responses",
    )


class Suspicion:
    """Statistics of one client under one gate version: over all groups, and by kind of group."""

    def __init__(self, disagreement: float | None = None) -> None:
        """``disagreement``: share of the anchors on which the client and the others disagreed at the fit; without it,
        and above a fifth, only opposition is tested.
        """
        tested = disagreement is not None and disagreement <= _MOST_DISAGREEMENT
        self._discord = (disagreement or 0.0) + _SLACK if tested else None
        self._opposed: dict[tuple[str, ...], float] = {}
        self._disagreed: dict[tuple[str, ...], float] = {}
        self._compared: dict[tuple[str, ...], int] = {}
        """Groups of each kind in which discord was tested."""

    def oppose(self, cosine: float, stake: float, kind: tuple[str, ...]) -> None:
        """Count the agreement with the others that are not suspected in a group; ``stake`` lies in [0, 1]."""
        gain = _gain(cosine < _AGAINST, stake, _OPPOSED, _SHARES[0])
        self._opposed[kind] = min(_MOST, max(0.0, self._opposed.get(kind, 0.0) + gain))

    def disagree(self, cosine: float, stake: float, kind: tuple[str, ...]) -> None:
        """Count the agreement with the other clients of the fit, in a group that has nearly all of their weight."""
        if self._discord is not None and not math.isnan(cosine):
            gain = _gain(cosine < _APART, stake, self._discord, _SHARES[1])
            for counted in (_EVERY, kind):
                self._disagreed[counted] = max(0.0, self._disagreed.get(counted, 0.0) + gain)
            self._compared[kind] = self._compared.get(kind, 0) + 1

    def forget_discord(self) -> None:
        """Start discord anew: a client of the fit has lost its weight, and others may have disagreed with it alone."""
        self._disagreed.clear()
        self._compared.clear()

    def discord(self, kind: tuple[str, ...]) -> float:
        """Return the statistic of discord in groups of this kind; while they are few, that in all groups if larger."""
        own = self._disagreed.get(kind, 0.0)
        few = self._compared.get(kind, 0) < _OF_ITS_OWN
        return max(own, self._disagreed.get(_EVERY, 0.0)) if few else own

    def opposed(self, kind: tuple[str, ...]) -> bool:
        """Return whether the client is suspected of opposition in groups of this kind."""
        return self._opposed.get(kind, 0.0) >= _SUSPECTED


def suspects(suspicions: Mapping[str, Suspicion], kind: tuple[str, ...]) -> frozenset[str]:
    """Return the clients that are suspected in groups of this kind.

    Of those in discord only the first counts: its noise makes the others disagree as well, in fewer groups.
    """
    opposed = {client for client, suspicion in suspicions.items() if suspicion.opposed(kind)}
    first = max(suspicions, key=lambda client: suspicions[client].discord(kind), default=None)
    if first is not None and suspicions[first].discord(kind) >= _SUSPECTED:
        opposed.add(first)
    return frozenset(opposed)


def _gain(happened: bool, stake: float, usual: float, share: float) -> float:
    return math.log1p(share / usual * stake * (happened - usual))
