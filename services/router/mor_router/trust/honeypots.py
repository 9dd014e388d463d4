"""Honeypots: calls to clients that look like calls for live groups and consist of anchors.

A share of live calls is followed by a honeypot call with as many groups, in the shapes of recent live groups
(``honeypot_shapes``), with the same objective, deadline and clients. It leaves together with one of the next live
calls, because a call between two bursts of live traffic would stand out. A call is wholly live or wholly honeypot: an
anchor added to a live call would make it longer, and a client could rely on short calls to be live. Live groups do not
wait for honeypots.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import MorError
from mor_core.failures import describe_failure
from mor_core.stored import StoredEntries
from mor_core.tasks import stop
from mor_core.wire import Count, Messages, ScoreItem, image_hashes
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis
from redis.exceptions import RedisError

from mor_router import metrics
from mor_router.clients.honeypot_scores import HoneypotScore, HoneypotScores, scored_now
from mor_router.clients.scoring import ScoreBatch, ScoreRequester
from mor_router.embedding import Embedder, GateInput, embedding_for
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.objective_store import Objective, ObjectiveStore
from mor_router.store import key
from mor_router.trust.drift import Drift
from mor_router.trust.honeypot_shapes import HoneypotGroup, RecentShapes, choose_anchors, honeypot_group

_MOST_WAITING = 16
"""Most honeypot calls that wait or run at a time; further ones are skipped, to bound the load on clients."""
_MOST_CALLS = 4
"""Most live calls until a honeypot leaves together with one: within a step or two of its draw."""
_LONGEST_WAIT_S = 600.0
"""Seconds without such a call after which a honeypot is dropped: alone in a pause it would stand out."""
_NEIGHBOURS = 64
"""Anchors among which the fillers of a group are searched."""
_DRAWS = 4
"""Shapes drawn for each group of a honeypot call: some may fit no anchor."""
_BURST_S = 1.0
"""Longest gap between the starts of two live calls of one burst: a honeypot leaves by such a gap."""
_GAPS = 64
"""Latest gaps that are remembered."""

_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_SENT = StoredEntries("honeypot_counts")

log = structlog.get_logger(__name__)
_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass(frozen=True)
class HoneypotCall:
    """A live call for groups of runs as clients see it, which a honeypot call may imitate."""

    objective: Objective
    gate: int
    groups: Sequence[tuple[Messages, Sequence[str]]]
    """Messages and responses of each of its groups."""
    clients_for: Callable[[Float[ndarray, " features"]], Collection[str]]
    """Function from a group's features to the clients that score it."""
    deadline_s: float


@dataclass
class _Waiting:
    """A honeypot call until the live call that it leaves with."""

    objective: str
    calls: int
    """Live calls that still go first."""
    leaves: asyncio.Future[None]


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
        self._shapes = RecentShapes()
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._latest: dict[str, HoneypotCall] = {}
        self._last_s = -math.inf
        self._gaps: deque[float] = deque(maxlen=_GAPS)

    def follow(self, call: HoneypotCall) -> None:
        """Schedule a honeypot call after a live call that starts now, with the probability of the set share."""
        loop, name = asyncio.get_running_loop(), call.objective.name
        now = loop.time()
        if now - self._last_s <= _BURST_S:
            self._gaps.append(now - self._last_s)
        self._last_s = now
        self._shapes.observe(name, call.groups)
        self._latest[name] = call
        self._release(call)
        chosen = _random.random() < self._odds and call.objective.anchors
        if chosen and len(self._tasks) < _MOST_WAITING:
            waiting = _Waiting(name, _random.randint(1, _MOST_CALLS), loop.create_future())
            self._waiting.append(waiting)
            task = asyncio.create_task(self._send_later(call, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _release(self, call: HoneypotCall) -> None:
        """Let the honeypots go whose turn it is, together with this live call."""
        for waiting in self._waiting:
            if waiting.objective == call.objective.name:
                waiting.calls -= 1
                if waiting.calls <= 0 and not waiting.leaves.done():
                    waiting.leaves.set_result(None)

    def known_picture(self, messages: Messages) -> bool:
        """Return whether all pictures of a group were sent to clients lately."""
        return self._shapes.known(image_hashes(messages))

    async def settled(self) -> None:
        """Send all scheduled honeypot calls now and wait until they have ended; each ends by its deadline."""
        for waiting in self._waiting:
            if not waiting.leaves.done():
                waiting.leaves.set_result(None)
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Cancel all scheduled honeypot calls."""
        await stop(self._tasks)

    async def _send_later(self, call: HoneypotCall, waiting: _Waiting) -> None:
        name = call.objective.name
        try:
            groups, vectors, images = await self._groups(call)
            async with asyncio.timeout(_LONGEST_WAIT_S):
                await waiting.leaves
                await self._leave_gap()
            if groups:
                await self._send(self._latest[name], groups, vectors, images)
        except TimeoutError:
            log.debug("a honeypot call was dropped: no live call followed", objective=name)
        except (MorError, RedisError) as error:
            log.warning("a honeypot call could not be made", objective=name, reason=describe_failure(error))
        except Exception as error:  # no caller awaits this task, so its failure is logged here
            log.error("a honeypot call failed", objective=name, exc_info=error)
        finally:
            self._waiting.remove(waiting)

    async def _leave_gap(self) -> None:
        """Wait until no live call has come for a time like those between live calls."""
        latest = None
        while latest != self._last_s and self._gaps:
            latest = self._last_s
            await asyncio.sleep(_random.choice(self._gaps))

    async def _send(
        self,
        call: HoneypotCall,
        groups: Sequence[HoneypotGroup],
        vectors: Mapping[str, Float[ndarray, " features"]],
        images: Mapping[str, bytes],
    ) -> None:
        """Send the groups as ``call`` sends its own, and store the scores of their anchors."""
        name = call.objective.name
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
        for group in groups:
            self._shapes.sent(group.anchor.messages)
        found = await self._requester.fan_out(ScoreBatch(items, images), clients, (), call.deadline_s)
        scores: list[HoneypotScore] = []
        for group in groups:
            for client, answer in found[group.anchor.digest].items():
                metrics.HONEYPOTS.labels(client, answer.status).inc()
                if answer.scores is not None and answer.model is not None and group.rejected is not None:
                    pair = answer.scores[group.chosen], answer.scores[group.rejected]
                    scores.append(scored_now(client, answer.model, call.gate, group.anchor.digest, pair))
        await self._honeypot_scores.add(name, scores, vectors)
        await self._drift.review(name)

    async def _groups(
        self, call: HoneypotCall
    ) -> tuple[list[HoneypotGroup], dict[str, Float[ndarray, " features"]], dict[str, bytes]]:
        """Build as many groups as ``call`` has, in the shapes of recent live ones; return embeddings and images too.

        No groups where the anchors do not suffice: a call of another size, or with pictures that the client knows too
        well, would stand out.

        Fillers are further responses to the anchor's question, then responses to the nearest questions among the
        candidates. Texts shown at a fit would reveal the honeypot.
        """
        name = call.objective.name
        anchors = [anchor for anchor in await self._objectives.anchors(name) if not anchor.audited]
        shown, kept = await self._holdout.split(anchors)
        candidates = kept or shown
        used = await self._times_sent(name, [anchor.digest for anchor in candidates])
        metrics.UNUSED_HONEYPOTS.labels(name).set(sum(not count for count in used.values()))
        wanted = len(call.groups)
        shapes = self._shapes.draw(name, _DRAWS * wanted)
        # A policy answers a question anew each time, so its samples go out once. Uploaded pairs are not in its style:
        # they serve where it was never sampled, and come again.
        sampled = [anchor for anchor in candidates if anchor.policy is not None]
        fresh = [anchor for anchor in sampled if not used[anchor.digest]]
        chosen = choose_anchors(shapes, wanted, fresh if sampled else candidates, used, self._shapes)
        if len(chosen) < wanted:
            return [], {}, {}
        taken = [anchor for anchor, _ in chosen]
        around = _random.sample(list(candidates), min(_NEIGHBOURS, len(candidates)))
        images = await self._objectives.images(name, [*taken, *around])
        with embedding_for("(honeypots)"):  # not in the turns of the call that they follow
            inputs = await self._embedder.inputs([GateInput(anchor.messages, images) for anchor in [*taken, *around]])
        own, near = inputs[: len(taken)], inputs[len(taken) :]
        groups = []
        for (anchor, shape), vector in zip(chosen, own, strict=True):
            same = [other for other in candidates if other.messages == anchor.messages]
            nearest = [around[row] for row in np.square(near - vector).sum(axis=1).argsort()]
            fillers = [text for other in [*same, *nearest] for text in (*other.others, other.chosen, other.rejected)]
            groups.append(honeypot_group(anchor, shape, [*anchor.others, *fillers]))
        async with self._redis.pipeline(transaction=False) as pipe:
            for anchor in taken:
                pipe.hincrby(key("asked", name), anchor.digest, 1)
            await pipe.execute()
        return groups, {anchor.digest: vector for anchor, vector in zip(taken, own, strict=True)}, images

    async def _times_sent(self, objective: str, digests: Sequence[str]) -> dict[str, int]:
        """Return how often each anchor was sent. A count that is none is deleted, so that it begins again."""
        place = key("asked", objective)
        stored: list[Any] = await _SENT.write(
            self._redis, [place], lambda: _SENT.fetch(self._redis, "HMGET", place, *digests)
        )
        counts = dict(zip(digests, stored, strict=True))
        times = _SENT.parse_all(counts, lambda _, count: _COUNT.validate_python(int(count)))
        broken = [digest for digest, count in counts.items() if count is not None and digest not in times]
        if broken:
            await self._redis.hdel(place, *broken)
        return {digest: times.get(digest, 0) for digest in digests}
