"""Honeypots: calls to clients that look like calls for live groups and consist of anchors.

A share of live calls is followed, after a random delay, by a honeypot call with the same number of items, group sizes,
objective, deadline and clients. Its items are anchors. A call is wholly live or wholly honeypot, so number, size and
time of calls reveal nothing: an anchor added to a live call would make it longer, and a client could rely on short
calls to be live. Live groups do not wait for honeypots.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import MorError
from mor_core.tasks import stop
from mor_core.wire import ScoreItem
from numpy import ndarray
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.honeypot_scores import HoneypotScore, HoneypotScores, scored_now
from mor_router.clients.scoring import ScoreBatch, ScoreRequester
from mor_router.embedding import Embedder, GateInput
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.objective_store import Anchor, Objective, ObjectiveStore
from mor_router.store import key
from mor_router.trust.drift import Drift

_MOST_WAITING = 16
"""Most honeypot calls that wait or run at a time; further ones are skipped, to bound the load on clients."""
_MOST_DELAY_S = 30.0
"""Most seconds that one pause between live calls adds to the mean, so that an idle hour does not delay honeypots."""
_NEIGHBOURS = 64
"""Anchors among which the fillers of a group are searched."""
_PACE = 0.1
"""Weight of the latest interval in the mean time between calls."""

log = structlog.get_logger(__name__)
_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass(frozen=True)
class HoneypotCall:
    """A live call as clients see it, which a honeypot call may imitate."""

    objective: Objective
    gate: int
    sizes: tuple[int, ...]
    """Number of responses of each of its groups."""
    clients_for: Callable[[Float[ndarray, " features"]], Collection[str]]
    """Function from a group's features to the clients that score it."""
    deadline_s: float


@dataclass(frozen=True)
class HoneypotGroup:
    """An anchor in the shape of a live group: its two responses among others, in random order."""

    anchor: Anchor
    responses: tuple[str, ...]
    chosen: int
    """Index of the anchor's chosen response in ``responses``."""
    rejected: int


def honeypot_group(anchor: Anchor, size: int, fillers: Sequence[str]) -> HoneypotGroup:
    """Build a group of ``size`` responses in random order: the anchor's two and the first other texts of ``fillers``.

    Too few fillers are repeated, as a policy repeats itself.

    Raises:
        ValueError: a group of one response, which compares nothing.
    """
    if size < 2:
        raise ValueError(f"got a group of {size}; an anchor needs two responses or more")
    others = [text for text in dict.fromkeys(fillers) if text not in (anchor.chosen, anchor.rejected)]
    wanted = size - 2
    taken = others[:wanted]
    taken += _random.choices(taken or [anchor.chosen, anchor.rejected], k=wanted - len(taken))
    texts = [anchor.chosen, anchor.rejected, *taken]
    order = _random.sample(range(size), size)
    return HoneypotGroup(anchor, tuple(texts[place] for place in order), order.index(0), order.index(1))


class Honeypots:
    """Sender of honeypot calls, for a ``share`` of all calls."""

    def __init__(
        self,
        *,
        redis: Redis,
        objectives: ObjectiveStore,
        holdout: AnchorHoldout,
        requester: ScoreRequester,
        honeypot_scores: HoneypotScores,
        drift: Drift,
        embedder: Embedder,
        share: float,
    ) -> None:
        self._redis = redis
        self._objectives = objectives
        self._holdout = holdout
        self._requester = requester
        self._honeypot_scores = honeypot_scores
        self._drift = drift
        self._embedder = embedder
        self._odds = share / (1 - share)
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_s: float | None = None
        self._interval_s = 0.0

    def follow(self, call: HoneypotCall) -> None:
        """Schedule a honeypot call after a live call that starts now, with the probability of the set share."""
        now = asyncio.get_running_loop().time()
        if self._last_s is not None:
            passed = min(now - self._last_s, _MOST_DELAY_S)
            self._interval_s += _PACE * (passed - self._interval_s)
        self._last_s = now
        chosen = _random.random() < self._odds and min(call.sizes) > 1 and call.objective.anchors
        if chosen and len(self._tasks) < _MOST_WAITING:
            task = asyncio.create_task(self._send_later(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until all scheduled honeypot calls have ended; each ends by its deadline."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Cancel all scheduled honeypot calls."""
        await stop(self._tasks)

    async def _send_later(self, call: HoneypotCall) -> None:
        await asyncio.sleep(_random.uniform(0, 2 * self._interval_s))
        try:
            await self._send(call)
        except (MorError, RedisError) as error:
            log.warning("a honeypot call could not be made", objective=call.objective.name, reason=str(error))
        except Exception as error:  # no caller awaits this task, so its failure is logged here
            log.error("a honeypot call failed", objective=call.objective.name, exc_info=error)

    async def _send(self, call: HoneypotCall) -> None:
        name = call.objective.name
        anchors = [anchor for anchor in await self._objectives.anchors(name) if not anchor.audited]
        shown, kept = await self._holdout.split(anchors)
        groups, vectors = await self._groups(name, kept or shown, call.sizes)
        if not groups:
            return
        images = await self._objectives.images(name, [group.anchor for group in groups])
        items = [
            ScoreItem(
                item_id=group.anchor.digest,
                messages=group.anchor.messages,
                responses=group.responses,
                objective=call.objective.text,
            )
            for group in groups
        ]
        clients = {digest: call.clients_for(vector) for digest, vector in vectors.items()}
        found = await self._requester.fan_out(ScoreBatch(items, images), clients, (), call.deadline_s)
        scores: list[HoneypotScore] = []
        for group in groups:
            for client, answer in found[group.anchor.digest].items():
                metrics.HONEYPOTS.labels(client, answer.status).inc()
                if answer.scores is not None and answer.model is not None:
                    pair = answer.scores[group.chosen], answer.scores[group.rejected]
                    scores.append(scored_now(client, answer.model, call.gate, group.anchor.digest, pair))
        await self._honeypot_scores.add(name, scores, vectors)
        await self._drift.review(name)

    async def _groups(
        self, objective: str, candidates: Sequence[Anchor], sizes: Sequence[int]
    ) -> tuple[list[HoneypotGroup], dict[str, Float[ndarray, " features"]]]:
        """Build a group for each of ``sizes`` from the candidates used least so far; return the groups and embeddings.

        Fillers are further responses to the anchor's question, then responses to the nearest questions among the
        candidates. Texts shown at a fit would reveal the honeypot.
        """
        counts = await self._redis.hmget(key("asked", objective), [anchor.digest for anchor in candidates])
        times = {anchor.digest: int(count or 0) for anchor, count in zip(candidates, counts, strict=True)}
        metrics.UNUSED_HONEYPOTS.labels(objective).set(sum(not count for count in times.values()))
        order = sorted(_random.sample(list(candidates), len(candidates)), key=lambda anchor: times[anchor.digest])
        taken = order[: len(sizes)]
        around = _random.sample(list(candidates), min(_NEIGHBOURS, len(candidates)))
        images = await self._objectives.images(objective, [*taken, *around])
        inputs = await self._embedder.inputs([GateInput(anchor.messages, images) for anchor in [*taken, *around]])
        own, near = inputs[: len(taken)], inputs[len(taken) :]
        groups = []
        for anchor, vector, size in zip(taken, own, sizes, strict=False):
            nearest = [around[row] for row in np.square(near - vector).sum(axis=1).argsort()]
            fillers = [*anchor.others, *(text for other in nearest for text in (other.chosen, other.rejected))]
            groups.append(honeypot_group(anchor, size, fillers))
        async with self._redis.pipeline(transaction=False) as pipe:
            for anchor in taken:
                pipe.hincrby(key("asked", objective), anchor.digest, 1)
            await pipe.execute()
        return groups, {anchor.digest: vector for anchor, vector in zip(taken, own, strict=True)}
