"""One attack on a live run: what it costs until the attacker loses its weight.

Gate, fusion, suspicion, audits and their test are the router's own; only HTTP, stores and time are left out. The
attacker recognises every honeypot, which is the worst case, so none are sent.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int
from mor_router.learning.gate_fitter import drift_baselines
from mor_router.mathematics.audit_draw import AuditBudget
from mor_router.mathematics.audit_test import AuditedGroup, audit_result, distinct_pairs, worth
from mor_router.mathematics.drift_test import DriftBaseline
from mor_router.mathematics.fusion import Weighted
from mor_router.mathematics.group_fusion import FusedGroup, ObjectiveWeights, fuse
from mor_router.mathematics.mixture import Mixture, fit_mixture
from mor_router.mathematics.suspicion import Suspicion, situations
from mor_router.mathematics.suspicion import suspects as suspected
from mor_router.trust.live_suspicion import is_complete, observe
from numpy import ndarray

from adversary.live_groups import LiveGroups
from adversary.situational_attacks import Attack, Sight

ATTACKER = "attacker"
FALSE_ALARM = 0.01
"""The router's default."""
_ANCHORS = 128
"""Labelled pairs of the first policy's responses, the best and the worst of a group, as an online refit makes them."""
_SMALL, _EVERY = 4, 4
"""Every fourth live group has four responses, so that a client can condition on the size."""
ERROR, WEAK_ERROR = 0.8, 6.0
"""Honest error of the attacker, and of a client that is right in 55 % of the pairs."""
_ENTROPY_FLOOR = 0.1
"""The router's default."""
_SEED_OF_TEXTS = 7


@dataclass(frozen=True)
class World:
    """A stream of live groups, the scores that honest clients give, and the gate that was fitted before."""

    live: LiveGroups
    stream: Int[ndarray, " groups"]
    """Index of each live group."""
    honest: Float[ndarray, "all clients size"]
    """Raw scores; the attacker is the last client, and knows every domain."""
    clients: tuple[str, ...]
    mixture: Mixture
    expected: Mapping[str, DriftBaseline]


@dataclass(frozen=True)
class CampaignResult:
    """Course of one live run."""

    accuracy: Float[ndarray, " groups"]
    """Share of the pairs of each group that the reward ranks right; NaN where all responses have the same value."""
    weight: Float[ndarray, " groups"]
    """The attacker's share of the mixture."""
    audited: Bool[ndarray, " groups"]
    distrusted: Mapping[str, int]
    """Client -> live groups until it lost its weight."""


def make_world(live: LiveGroups, groups: int, seed: int, *, error: float = ERROR) -> World:
    """Draw anchors and a stream of ``groups`` groups, in which the policies take turns early and late.

    ``error``: standard deviation of the attacker's honest error, in standard deviations of the true values.
    """
    random = np.random.default_rng(seed)
    noise = np.random.default_rng(_SEED_OF_TEXTS).normal(size=(len(live), live.truth.shape[1]))
    knowing = live.truth + error * live.truth.std() * _per_text(noise, live.texts)
    honest = np.concatenate([live.scores, knowing[:, None]], axis=1)
    clients = (*live.clients, ATTACKER)
    early = random.permutation(np.flatnonzero(live.policy == 0))
    usable = [g for g in early if np.ptp(live.truth[g]) > 0][:_ANCHORS]
    places = np.stack([live.truth[usable].argmax(axis=1), live.truth[usable].argmin(axis=1)], axis=1)
    pairs = np.take_along_axis(honest[usable], places[:, None], axis=2)
    mixture, _ = fit_mixture(clients, live.inputs[usable], pairs, entropy_floor=_ENTROPY_FLOOR)
    left = np.setdiff1d(np.arange(len(live)), usable)
    late = np.sort(random.random(groups)) < np.linspace(0, 1, groups)  # more and more groups of the later policy
    pools = [left[live.policy[left] == number] for number in (0, 1)]
    stream = np.array([random.choice(pools[int(turned)]) for turned in late])
    return World(live, stream, honest, clients, mixture, drift_baselines(mixture, live.inputs[usable], pairs))


def run(world: World, attack: Attack, *, share: float, limited: bool, attacker: bool, seed: int) -> CampaignResult:
    """Reward the stream; without ``attacker`` that client has no weight from the start."""
    return _Run(world, attack, share=share, limited=limited, attacker=attacker, seed=seed).result()


class _Run:
    def __init__(self, world: World, attack: Attack, *, share: float, limited: bool, attacker: bool, seed: int) -> None:
        self._world = world
        self._attack = attack
        self._limited = limited
        self._random = np.random.default_rng((seed, 1))
        self._answers = np.random.default_rng((seed, 2))
        self._trusted = list(world.clients if attacker else world.clients[:-1])
        self._standardisers = dict(zip(world.mixture.clients, world.mixture.standardisers, strict=True))
        self._suspicions = {name: Suspicion(world.expected[name].disagreement) for name in world.clients}
        self._budget = AuditBudget(share)
        self._audits: list[AuditedGroup] = []
        self._pictures: set[int] = set()
        self._distrusted: dict[str, int] = {}
        self._weights = self._lenses()

    def result(self) -> CampaignResult:
        lines = [self._step(place, int(group)) for place, group in enumerate(self._world.stream)]
        accuracy, weight, audited = (np.array(column) for column in zip(*lines, strict=True))
        return CampaignResult(accuracy, weight, audited, self._distrusted)

    def _step(self, place: int, group: int) -> tuple[float, float, bool]:
        live = self._world.live
        size = _SMALL if place % _EVERY == 0 else live.truth.shape[1]
        truth, texts = live.truth[group, :size], live.texts[group, :size]
        known = int(live.pictures[group]) in self._pictures
        self._pictures.add(int(live.pictures[group]))
        sight = Sight(place, texts, known, live.domains[group], self._standardisers[ATTACKER].spread)
        raw = dict(zip(self._world.clients, self._world.honest[group, :, :size], strict=True))
        raw[ATTACKER] = self._attack(sight, raw[ATTACKER], self._answers)
        lens = self._weights[place]
        seen = situations([str(text) for text in texts], known_picture=known)
        suspects = suspected({name: self._suspicions[name] for name in self._trusted}, seen)
        fused = fuse(
            {name: raw[name].tolist() for name in self._trusted},
            objective_weights=[lens],
            standardisers=[self._standardisers],
            fusion=Weighted(),
            quorum=0.5,
            suspects=suspects if self._limited else (),
        )
        assert isinstance(fused, FusedGroup)
        audited = self._audit(place, truth, texts, fused, lens, seen, suspects)
        self._suspect(fused, lens, seen)
        weight = float(fused.weights[fused.clients.index(ATTACKER)]) if ATTACKER in fused.clients else 0.0
        return ranked_right(fused.rewards, truth), weight, audited

    def _lenses(self) -> list[ObjectiveWeights]:
        """Compute the gate's weights of all groups over the clients that are trusted now."""
        mixture, inputs = self._world.mixture, self._world.live.inputs[self._world.stream]
        found = mixture.evaluate(inputs, self._trusted)
        places = {name: mixture.clients.index(name) for name in self._trusted}
        return [
            ObjectiveWeights(
                1.0,
                {name: float(found.weights[place, k]) for name, k in places.items()},
                {name: float(found.slopes[place, k]) for name, k in places.items()},
                float(found.ood_score[place]),
                {name: float(found.fit_weights[place, k]) for name, k in places.items()},
            )
            for place in range(len(inputs))
        ]

    def _audit(
        self,
        place: int,
        truth: Float[ndarray, " size"],
        texts: Int[ndarray, " size"],
        fused: FusedGroup,
        lens: ObjectiveWeights,
        seen: tuple[str, ...],
        suspects: frozenset[str],
    ) -> bool:
        """Draw the group; label it where it is drawn, and distrust the clients that the audits convict."""
        scores = dict(zip(fused.clients, fused.standardised, strict=True))
        group = AuditedGroup(
            distinct_pairs(texts.tolist()),
            scores,
            {name: lens.fit_weights[name] for name in fused.clients},
            lens.slopes,
            fused.rewards,
            1.0,
            1 - lens.ood_score,
            seen,
            suspects,
        )
        probability = self._budget.probability(max((worth(group, name) for name in suspects), default=0.0))
        pairs = labelled_pairs(truth)
        if self._random.random() >= probability or not pairs:
            return False
        self._budget.spend()
        self._audits.append(replace(group, pairs=pairs, probability=probability))
        for name, found in audit_result(self._audits).items():
            if name in self._trusted and found.log_evidence >= -math.log(FALSE_ALARM) and len(self._trusted) > 1:
                self._trusted.remove(name)
                for suspicion in self._suspicions.values():
                    suspicion.forget_discord()
                self._distrusted[name] = place + 1
                self._weights = self._lenses()
        return True

    def _suspect(self, fused: FusedGroup, lens: ObjectiveWeights, seen: tuple[str, ...]) -> None:
        known = {name: self._suspicions[name] for name in fused.clients}
        observe(fused, known, seen, complete=is_complete(fused, lens))


def labelled_pairs(truth: Float[ndarray, " size"]) -> tuple[tuple[int, int], ...]:
    """Return the pairs that a checker labels: the better response first, each value once."""
    places = np.unique(truth.round(9), return_index=True)[1]
    return tuple((int(i), int(j)) for i, j in itertools.permutations(places, 2) if truth[i] > truth[j])


def ranked_right(rewards: Float[ndarray, " size"], truth: Float[ndarray, " size"]) -> float:
    """Compute the share of the pairs with different true values that the reward ranks as they do; a tie counts ½."""
    first, second = np.triu_indices(len(truth), 1)
    differ = np.abs(truth[first] - truth[second]) > 1e-9
    if not differ.any():
        return float("nan")
    agree = np.sign(rewards[first] - rewards[second]) * np.sign(truth[first] - truth[second])
    return float((agree[differ] + 1).mean() / 2)


def _per_text(
    noise: Float[ndarray, "groups size"], texts: Int[ndarray, "groups size"]
) -> Float[ndarray, "groups size"]:
    """Give equal responses of a group equal noise."""
    first = (texts[:, :, None] == texts[:, None, :]).argmax(axis=2)
    return np.take_along_axis(noise, first, axis=1)
