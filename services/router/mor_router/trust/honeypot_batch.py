"""Honeypots that travel with one live call, and the call as clients see it."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Float
from mor_core.wire import Messages
from numpy import ndarray

from mor_router.clients.responses import ClientResponse
from mor_router.clients.scoring import ClientResponses, ScoreBatch
from mor_router.mathematics.quorum import missing_quorum
from mor_router.objectives.objective_store import Objective
from mor_router.trust.honeypot_source import Honeypot

_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass(frozen=True)
class HoneypotCall:
    """A live call for groups of runs as clients see it, which honeypots may join."""

    objective: Objective
    gate: int
    groups: Sequence[tuple[Messages, Sequence[str]]]
    """Messages and responses of each of its groups."""
    weights_for: Callable[[Float[ndarray, " features"], Collection[str]], Mapping[str, float]]
    """Function from a group's features, and the clients that may not be asked about it, to the weights of the clients
    that score it."""
    shadows: Collection[str]
    """Clients that score every group."""
    deadline_s: float
    quorum: float
    """Least share of the weight with which a live group is not tried again."""
    retry_s: float
    """Mean seconds before a live group is tried again for the first time."""
    unasked: frozenset[str] = frozenset()
    """Clients that may not be asked about its groups."""
    all_clients: bool = False
    """A live group is tried again until every client with weight has scored it."""

    @property
    def lane(self) -> str:
        """Objective and clients of the call: each client sees the calls of its own lanes only, so that sizes and shapes
        are compared, and honeypots join, within one."""
        return "\n".join((self.objective.name, *sorted(self.unasked)))


@dataclass(frozen=True)
class HoneypotBatch:
    """Honeypots that are sent with a live call."""

    call: HoneypotCall
    honeypots: Sequence[Honeypot] = ()
    known: Mapping[str, Mapping[str, ClientResponse]] = field(default_factory=dict)
    """Good answers of earlier attempts by digest; empty at the first one."""

    def weighted(self) -> dict[str, Collection[str]]:
        """Map the items of the honeypots to the weighted clients that score them."""
        return {one.digest: tuple(self._weights(one)) for one in self.honeypots}

    def joined_by(self, other: HoneypotBatch | None) -> HoneypotBatch:
        """Return these honeypots with those of another call of the same objective, for one call."""
        if other is None:
            return self
        return replace(self, honeypots=[*self.honeypots, *other.honeypots], known={**self.known, **other.known})

    def left(self, answers: ClientResponses) -> HoneypotBatch | None:
        """Return the honeypots that would be tried again if they were live groups, if any; ``answers`` are theirs."""
        again = [one for one in self.honeypots if self._lacks_quorum(one, answers[one.digest])]
        good = {
            one.digest: {name: answer for name, answer in answers[one.digest].items() if answer.status == "ok"}
            for one in again
        }
        return HoneypotBatch(self.call, again, good) if again else None

    def _weights(self, honeypot: Honeypot) -> Mapping[str, float]:
        return self.call.weights_for(honeypot.vector, honeypot.unasked)

    def _lacks_quorum(self, honeypot: Honeypot, answers: Mapping[str, ClientResponse]) -> bool:
        if not any(answer.may_change for answer in answers.values()):
            return False
        weights = self._weights(honeypot)
        given = {name: answers[name] for name in weights if name in answers}
        scored = np.array([[weights[name] for name, answer in given.items() if answer.scores is not None]])
        declined = sum(weights[name] for name, a in given.items() if a.scores is None and not a.of_call)
        if not any(answer.may_change for answer in given.values()):
            return False
        return self.call.all_clients or missing_quorum(scored, np.array([declined]), self.call.quorum) is not None

    def added_to(self, batch: ScoreBatch) -> ScoreBatch:
        """Return ``batch`` with the honeypots among its items, at random places."""
        items = list(batch.items)
        for one in self.honeypots:
            items.insert(_random.randint(0, len(items)), one.item(self.call.objective.text))
        images = {digest: content for one in self.honeypots for digest, content in one.images.items()}
        origins = {one.digest: one.group.anchor.origin for one in self.honeypots}
        return replace(batch, items=items, images={**batch.images, **images}, origins={**batch.origins, **origins})
