"""Making of honeypots: an anchor that the latest live groups resemble, and the texts around it.

Candidates are the held-out anchors, and the policy's samples on the questions of audited groups (``online_refit``):
fits show neither, so no client knows their responses.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from mor_core.stored import StoredEntries
from mor_core.wire import Count, PromptOrigin, ScoreItem, image_hashes
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router import metrics
from mor_router.embedding import HONEYPOTS, Embedder, GateInput, embedding_for
from mor_router.objectives.anchor_holdout import AnchorHoldout
from mor_router.objectives.objective_store import Anchor, Objective, ObjectiveStore
from mor_router.store import key
from mor_router.trust.honeypot_shapes import GroupShape, HoneypotGroup, RecentShapes, choose_anchor, honeypot_group

_NEIGHBOURS = 64
"""Anchors among which the fillers of a group are searched."""
_DRAWS = 8
"""Shapes drawn for a honeypot: some may fit no anchor."""
_FRESH_S = 1.0
"""Seconds for which candidates are kept: the honeypots of one step of a run read and divide the anchors once."""

_COUNT: TypeAdapter[int] = TypeAdapter(Count)
_SENT = StoredEntries("honeypot_counts")

_random = random.SystemRandom()  # a client that could predict the draws would recognise honeypots


@dataclass(frozen=True)
class Honeypot:
    """A honeypot group that is ready to be sent."""

    group: HoneypotGroup
    shape: GroupShape
    """Shape of the live group that it imitates."""
    vector: Float[ndarray, " features"] = field(repr=False)
    images: Mapping[str, bytes] = field(repr=False)
    unasked: Collection[str] = ()
    """Clients that may not be asked about it."""

    @property
    def digest(self) -> str:
        return self.group.anchor.digest

    def item(self, objective: str) -> ScoreItem:
        """Return the item that clients score; its id is the anchor's digest, which no client is sent."""
        anchor = self.group.anchor
        return ScoreItem(
            item_id=anchor.digest, messages=anchor.messages, responses=self.group.responses, objective=objective
        )


class HoneypotSource:
    """Source of honeypots: the anchors of an objective."""

    def __init__(
        self,
        *,
        redis: Redis,
        objectives: ObjectiveStore,
        holdout: AnchorHoldout,
        embedder: Embedder,
        recent: RecentShapes,
        unasked: Callable[[PromptOrigin], Collection[str]],
    ) -> None:
        """``unasked`` returns the clients that may not be asked about a prompt."""
        self._redis = redis
        self._objectives = objectives
        self._holdout = holdout
        self._embedder = embedder
        self._recent = recent
        self._unasked = unasked
        self._reading = asyncio.Lock()
        self._kept: dict[str, list[Anchor]] = {}
        """Objective -> candidates that were read less than ``_FRESH_S`` ago."""

    async def make(
        self, objective: Objective, lane: str, unasked: Collection[str], taken: Collection[str]
    ) -> Honeypot | None:
        """Make a honeypot in the shape of a recent live group of a lane; ``None`` where no anchor fits one.

        Preferred are anchors that the same clients may be asked about as the lane's groups, of which ``unasked`` are
        left out; failing them, anchors for fewer clients. Anchors whose digest is ``taken`` are left out. Fillers are
        further responses to the anchor's question, then responses to the nearest questions among the candidates. Texts
        shown at a fit would reveal the honeypot.
        """
        name = objective.name
        candidates = self._for_lane(await self._candidates(name), unasked)
        used = await self._times_sent(name, [anchor.digest for anchor in candidates])
        metrics.UNUSED_HONEYPOTS.labels(name).set(sum(not count for count in used.values()))
        # A policy answers a question anew each time, so its samples go out once. Uploaded pairs are not in its style:
        # they serve where it was never sampled, and come again.
        sampled = [anchor for anchor in candidates if anchor.policy is not None]
        fresh = [anchor for anchor in sampled if not used[anchor.digest]]
        left = [anchor for anchor in (fresh if sampled else candidates) if anchor.digest not in taken]
        shapes = self._recent.draw(lane, _DRAWS)
        found = choose_anchor(shapes, left, used, self._recent, again=not sampled)
        if found is None:
            return None
        anchor, shape = found
        as_drawn = len(anchor.sample) == shape.size
        around = [] if as_drawn else _random.sample(candidates, min(_NEIGHBOURS, len(candidates)))
        images = await self._objectives.images(name, [anchor, *around])
        with embedding_for(HONEYPOTS):  # not in the turns of the live groups
            own, *near = await self._embedder.inputs([GateInput(one.messages, images) for one in (anchor, *around)])
        nearest = [around[row] for row in np.square(np.array(near) - own).sum(axis=-1).argsort()] if around else []
        same = [other for other in candidates if other.messages == anchor.messages]
        fillers = [text for other in [*same, *nearest] for text in (*other.others, other.chosen, other.rejected)]
        group = honeypot_group(anchor, shape, [*anchor.others, *fillers])
        pictures = {digest: images[digest] for digest in image_hashes(anchor.messages)}
        return Honeypot(group, shape, own, pictures, frozenset(self._unasked(anchor.origin)))

    def _for_lane(self, candidates: Sequence[Anchor], unasked: Collection[str]) -> Sequence[Anchor]:
        """Return the anchors for a lane. All may go to the same clients, since texts of one fill groups of others."""
        left_out, by_clients = frozenset(unasked), dict[frozenset[str], list[Anchor]]()
        for origin in {one.origin for one in candidates}:
            by_clients.setdefault(frozenset(self._unasked(origin)), []).extend(
                one for one in candidates if one.origin == origin
            )
        fewer = [found for clients, found in by_clients.items() if clients >= left_out]
        return by_clients.get(left_out) or max(fewer, key=len, default=[])

    async def count_sent(self, objective: str, digests: Sequence[str]) -> None:
        """Count anchors as sent once more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for digest in digests:
                pipe.hincrby(key("asked", objective), digest, 1)
            await pipe.execute()

    async def _candidates(self, objective: str) -> list[Anchor]:
        async with self._reading:
            if objective not in self._kept:
                self._kept[objective] = await self._read_candidates(objective)
                asyncio.get_running_loop().call_later(_FRESH_S, self._kept.pop, objective, None)
            return self._kept[objective]

    async def _read_candidates(self, objective: str) -> list[Anchor]:
        anchors = [anchor for anchor in await self._objectives.anchors(objective) if not anchor.audited]
        shown, kept = await self._holdout.split([anchor for anchor in anchors if not anchor.live_question])
        return [*(kept or shown), *(anchor for anchor in anchors if anchor.live_question)]

    async def _times_sent(self, objective: str, digests: Sequence[str]) -> dict[str, int]:
        """Return how often each anchor was sent. A count that is none is deleted, so that it begins again."""
        if not digests:
            return {}
        place = key("asked", objective)
        stored: list[Any] = await _SENT.write(
            self._redis, {place: "hash"}, lambda: _SENT.fetch(self._redis, "HMGET", place, *digests)
        )
        counts = dict(zip(digests, stored, strict=True))
        times = _SENT.parse_all(counts, lambda _, count: _COUNT.validate_python(int(count)))
        broken = {digest: count for digest, count in counts.items() if count is not None and digest not in times}
        if broken:
            await _SENT.delete(self._redis, place, broken)
        return {digest: times.get(digest, 0) for digest in digests}
