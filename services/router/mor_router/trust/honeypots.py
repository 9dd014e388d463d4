"""Anchors among live traffic: calls to clients that look like calls for live groups and are made of anchors.

A live call is copied now and then: another call with as many items, groups of the same sizes, the same objective,
deadline and clients goes out a random time later, and its items are anchors. Calls are wholly live or wholly anchors,
because then number, size and time of calls tell nothing: an anchor added to a live call would make it longer, and a
client could trust the short ones to be live. Live groups do not wait for it.
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
from mor_router.trust.disguise import Disguised, disguise
from mor_router.trust.drift import Drift

_MOST_WAITING = 16
_MOST_DELAY_S = 30.0
_NEIGHBOURS = 64
"""Anchors among which the fillers of a group are looked for."""
_PACE = 0.1
"""Weight of the latest interval in the mean time between calls."""

log = structlog.get_logger(__name__)
_random = random.SystemRandom()


@dataclass(frozen=True)
class Call:
    """A live call, as far as a client sees it."""

    objective: Objective
    gate: int
    sizes: tuple[int, ...]
    """Responses of each of its groups."""
    asked: Callable[[Float[ndarray, " features"]], Collection[str]]
    """The clients that are asked about a group with these features."""
    deadline_s: float


class Decoys:
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

    def follow(self, call: Call) -> None:
        """Perhaps copy a live call that is going out now."""
        now = asyncio.get_running_loop().time()
        if self._last_s is not None:
            passed = min(now - self._last_s, _MOST_DELAY_S)
            self._interval_s += _PACE * (passed - self._interval_s)
        self._last_s = now
        copied = _random.random() < self._odds and min(call.sizes) > 1 and call.objective.anchors
        if copied and len(self._tasks) < _MOST_WAITING:
            task = asyncio.create_task(self._later(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Wait until the calls of anchors that are due have been answered; each ends by its deadline."""
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        await stop(self._tasks)

    async def _later(self, call: Call) -> None:
        await asyncio.sleep(_random.uniform(0, 2 * self._interval_s))
        try:
            await self._ask(call)
        except (MorError, RedisError) as error:
            log.warning("anchors could not be interleaved", objective=call.objective.name, reason=str(error))
        except Exception as error:  # nobody waits for this task
            log.error("interleaving anchors failed", objective=call.objective.name, exc_info=error)

    async def _ask(self, call: Call) -> None:
        name = call.objective.name
        shown, kept = await self._holdout.split(await self._objectives.anchors(name))
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
        asked = {digest: call.asked(vector) for digest, vector in vectors.items()}
        found = await self._requester.fan_out(ScoreBatch(items, images), asked, (), call.deadline_s)
        said: list[HoneypotScore] = []
        for group in groups:
            for client, answer in found[group.anchor.digest].items():
                metrics.HONEYPOTS.labels(client, answer.status).inc()
                if answer.scores is not None and answer.model is not None:
                    pair = answer.scores[group.chosen], answer.scores[group.rejected]
                    said.append(scored_now(client, answer.model, call.gate, group.anchor.digest, pair))
        await self._honeypot_scores.add(name, said, vectors)
        await self._drift.review(name)

    async def _groups(
        self, objective: str, candidates: Sequence[Anchor], sizes: Sequence[int]
    ) -> tuple[list[Disguised], dict[str, Float[ndarray, " features"]]]:
        """The candidates asked least so far, one for each of ``sizes`` as far as there are so many, and their
        embeddings. Beside an anchor's two responses stand further ones to its question, and where these are too few
        those to the nearest questions among the candidates: texts that were shown at a fit would give it away."""
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
            groups.append(disguise(anchor, size, fillers))
        async with self._redis.pipeline(transaction=False) as pipe:
            for anchor in taken:
                pipe.hincrby(key("asked", objective), anchor.digest, 1)
            await pipe.execute()
        return groups, {anchor.digest: vector for anchor, vector in zip(taken, own, strict=True)}
