"""Sequential test of audited groups: evidence that a client misleads live groups.

The expected accuracy at the fit says nothing here: pairs of a moving policy are harder or easier than the anchors. What
no policy changes is that a client that the gate trusts at an input is right there at least half of the time, that it
seldom ranks a whole group in reverse, and that large differences between its scores mean more than small ones. With d_p
the client's standardised difference (preferred − other) of pair p of a group, u_k = w_k a_k / Σ_j w_j a_j its influence
at the group's input, over K clients with influence, and σ the input's support:

    y = Σ_p v_p y_p / Σ_p v_p        y_p = 1 where d_p > 0,   v_p = min( |d_p| / 2, 1 )

    mean       E[ y ] ≥ ½            stake σ · min( K u_k, 1 )² · mean_p v_p
    reversal   P( y < ¼ ) ≤ 0.15     stake σ · min( K u_k, 1 )² · min( 2 mean_p v_p, 1 ), at least 3 labelled responses
    claim      E[ h ] ≤ 1            h = Π_p ( P( ¼ c_p ) / P( c_p ) )^( σ / rounds )
                                     c_p = w_k a_k d_p,   P( c ) = 0.05 + 0.9 / ( 1 + e^−c )

The weights w are those over all clients of the gate. What a client has more of because others decline a group or have
lost their weight is no claim of its own: a specialist would have to be right where the expert declines.

The square is for specialists, which may mislead where they have little influence. Sizes are for a client that holds
responses for nearly equal: its order is an accident, and neither shows that it is honest nor that it misleads.

The third test is for noise. The part c_p of a client in the reward is a claim: that the preferred response is the
better one with probability P(c_p), where a label is wrong in 5 % of the pairs. The test compares the claims with claims
of a quarter of the size: the louder a client speaks, the more often it must be right. A weak client claims little, and
a specialist claims little outside its domain, so neither is found by it. No other client's scores enter, so nobody can
make an honest client look bad. The pairs of a group are those of a round-robin tournament: in each of its ``rounds``
every response is in one pair at most, and by Hölder's inequality their geometric mean keeps E[ h ] ≤ 1.

One group is one observation of each e-process (``e_process``), because pairs of one group depend on each other. A
client that inverts its scores reverses most groups, an honest one few of them, so the second test needs far fewer
groups; where only one pair of a group is labelled, the other two are left.

A client may mislead in some situations only, or from some time on. So each test runs over all groups, over the groups
of each situation, and over those in which the client was suspected when they were chosen: suspicion follows from
earlier groups alone (``suspicion``), so those groups are no selection by the label. The evidence is the weighted mean
of all these e-processes, which is one valid test. A false alarm has probability alpha for each client; for all K
clients together it is at most K · alpha.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mor_router.mathematics.drift_test import right
from mor_router.mathematics.e_process import log_evidence

_CHANCE = 0.5
_REVERSED = 0.25
"""Concordance below which a group counts as ranked in reverse."""
_REVERSALS = 0.15
"""Share of reversed groups that an honest client may have, where it has its share of the influence."""
_LEAST_LABELLED = 3
"""Labelled responses of a group from which on a reversal is no accident."""
_TWO_LABELLED = 0.5
"""Worth of a group in which two responses differ, relative to one with more."""
_CLEAR = 0.5
"""Mean size of a client's differences from which on its order is no accident."""
_OVERALL, _SUSPECTED, _BY_SITUATION = 0.35, 0.5, 0.15
"""Weights of the e-processes over all groups, over those under suspicion, and of all situations together."""
_BETS = (0.5, 0.8)
"""Bets of the reversal test: the best ones against clients that reverse 60 % and 84 % of the groups."""
_MEAN, _REVERSAL, _CLAIM = 0.1, 0.45, 0.45
"""Weights of the three tests: the last two are the faster ones where all of a group is labelled."""
_LESS = 0.25
"""Share of the claimed log-odds that a client holds whose claims are compared with the labels."""
_WRONG_LABELS = 0.05
"""Share of wrong labels that the third test reckons with, so that a few of them convict nobody."""


@dataclass(frozen=True)
class AuditedGroup:
    """A labelled live group. A client that did not score it is missing from the mappings."""

    pairs: tuple[tuple[int, int], ...]
    """Indices of the preferred and of the other response, for each labelled pair."""
    scores: Mapping[str, Float[ndarray, " responses"]]
    """Standardised scores of each client, shadows included."""
    weights: Mapping[str, float]
    """Gate weight of each client at this input, over all clients of the gate: these sum to less than 1 where others are
    missing; 0 for a shadow."""
    slopes: Mapping[str, float]
    """Slope of each client at this input, logits per standardised unit; 0 for a shadow."""
    rewards: Float[ndarray, " responses"]
    """Fused rewards of the responses, logits."""
    probability: float = 1.0
    """Probability with which the group was chosen."""
    support: float = 1.0
    """1 where the anchors cover the input, towards 0 far from all of them: how far the fit vouches for the weights."""
    situations: tuple[str, ...] = ()
    """Features of the group that a client could see, see ``suspicion.situations``."""
    suspects: frozenset[str] = frozenset()
    """Clients that were suspected in such a group when it was chosen."""


@dataclass(frozen=True)
class AuditResult:
    """Evidence that one client misleads live groups."""

    log_evidence: float
    """log E, see ``e_process``: at log(1/alpha) and above the client misleads, with false-alarm rate alpha."""
    reason: str
    """Result for the client, in words."""


@dataclass(frozen=True)
class _Observation:
    """One client in one audited group."""

    concordance: float
    """y."""
    trusted: float
    """Support · min( K u, 1 )²."""
    size: float
    """Mean of v_p."""
    labelled: int
    """Labelled responses."""
    situations: tuple[str, ...]
    suspected: bool
    overclaim: float
    """log h."""

    @property
    def strength(self) -> float:
        return min(1.0, self.size / _CLEAR)

    @property
    def mean_stake(self) -> float:
        return self.trusted * self.size

    @property
    def reversal_stake(self) -> float:
        return self.trusted * self.strength if self.labelled >= _LEAST_LABELLED else 0.0


def distinct_pairs(responses: Sequence[object]) -> tuple[tuple[int, int], ...]:
    """Return all pairs of different responses, each response at its first place."""
    return tuple(itertools.combinations([responses.index(text) for text in dict.fromkeys(responses)], 2))


def worth(group: AuditedGroup, client: str) -> float:
    """Compute the stake that the group would have as evidence on ``client``, before any label.

    ``pairs`` of the group are all that could be labelled. What the client says of them counts by its size alone, so
    groups may be chosen by it.
    """
    if not group.pairs or client not in group.scores:
        return 0.0
    found = _observation(group, client, _influence(group).get(client, 0.0))
    return found.trusted * found.strength * (1 if found.labelled >= _LEAST_LABELLED else _TWO_LABELLED)


def audit_result(groups: Sequence[AuditedGroup]) -> dict[str, AuditResult]:
    """Test every client of ``groups``, which are in order of arrival."""
    seen: dict[str, list[_Observation]] = {}
    for group in groups:
        influence = _influence(group)
        for client in group.scores:
            seen.setdefault(client, []).append(_observation(group, client, influence.get(client, 0.0)))
    return {client: _result(found) for client, found in sorted(seen.items())}


def _influence(group: AuditedGroup) -> dict[str, float]:
    """Compute min(K u, 1)² of each client: 1 where all have the same. Missing clients have the rest of the weight."""
    parts = {client: group.weights[client] * group.slopes[client] for client in group.scores if client in group.weights}
    held = sum(group.weights[client] for client in parts)
    total, count = sum(parts.values()) / held if held else 0.0, sum(part > 0 for part in parts.values())
    return {client: min(1.0, count * part / total) ** 2 for client, part in parts.items()} if total > 0 else {}


def _overclaim(group: AuditedGroup, client: str, differences: Float[ndarray, " pairs"], labelled: int) -> float:
    """Compute log h; ``labelled``: labelled responses."""
    claim = group.weights.get(client, 0.0) * group.slopes.get(client, 0.0) * differences
    rounds = labelled - 1 if labelled % 2 == 0 else labelled
    return group.support / rounds * float((_log_likelihood(_LESS * claim) - _log_likelihood(claim)).sum())


def _log_likelihood(differences: Float[ndarray, " pairs"]) -> Float[ndarray, " pairs"]:
    """Compute the logarithm of the probability that the label is as it is."""
    right = 1 / (1 + np.exp(-np.clip(differences, -500, 500)))
    return np.asarray(np.log(_WRONG_LABELS + (1 - 2 * _WRONG_LABELS) * right))


def _observation(group: AuditedGroup, client: str, influence: float) -> _Observation:
    scores = group.scores[client]
    differences = np.array([scores[better] - scores[worse] for better, worse in group.pairs])
    sizes = np.minimum(np.abs(differences) / 2, 1)
    total = float(sizes.sum())
    labelled = len({place for pair in group.pairs for place in pair})
    return _Observation(
        concordance=float(sizes @ right(differences) / total) if total > 0 else _CHANCE,
        trusted=group.support * influence,
        size=total / len(group.pairs),
        labelled=labelled,
        situations=group.situations,
        suspected=client in group.suspects,
        overclaim=_overclaim(group, client, differences, labelled),
    )


def _result(seen: Sequence[_Observation]) -> AuditResult:
    situations = sorted({name for one in seen for name in one.situations})
    parts = [
        ("", _OVERALL, np.ones(len(seen), dtype=bool)),
        (" under suspicion", _SUSPECTED, np.array([one.suspected for one in seen])),
        *(
            (f" with {name}", _BY_SITUATION / len(situations), np.array([name in one.situations for one in seen]))
            for name in situations
        ),
    ]
    paths = {words: _path(seen, counted) + math.log(weight) for words, weight, counted in parts}
    highest = np.logaddexp.reduce([*paths.values()], axis=0).max()
    words = max(paths, key=lambda name: float(paths[name].max()))
    counted = next(chosen for name, _, chosen in parts if name == words)
    stakes = np.array([one.mean_stake for one in seen]) * counted
    concordance = np.array([one.concordance for one in seen])
    agreement = float(stakes @ concordance / stakes.sum()) if stakes.sum() > 0 else _CHANCE
    return AuditResult(
        log_evidence=max(0.0, float(highest)),
        reason=f"right in {agreement:.0%} of {int(counted.sum())} audited groups{words} where it counts; chance is 50%",
    )


def _path(seen: Sequence[_Observation], counted: ndarray) -> Float[ndarray, " groups"]:
    """Compute log E of the three tests together, over the ``counted`` groups; the others have no stake."""
    concordance = np.array([one.concordance for one in seen])
    mean = log_evidence(concordance, _CHANCE, counted * np.array([one.mean_stake for one in seen]))
    stakes = counted * np.array([one.reversal_stake for one in seen])
    reversal = log_evidence(1.0 * (concordance >= _REVERSED), 1 - _REVERSALS, stakes, bets=_BETS)
    claim = (counted * np.array([one.overclaim for one in seen])).cumsum()
    weighted = [mean + math.log(_MEAN), reversal + math.log(_REVERSAL), claim + math.log(_CLAIM)]
    return np.asarray(np.logaddexp.reduce(weighted, axis=0))
