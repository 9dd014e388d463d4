"""Clients' raw scores of an objective's anchors, requested once per model version and cached, so that a fit resumes."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.errors import NotFound
from mor_core.stored import StoredEntries
from mor_core.wire import Finite, ModelRef, ScoreItem
from numpy import ndarray
from pydantic import TypeAdapter
from redis.asyncio import Redis

from mor_router.clients.pool import ClientPool
from mor_router.clients.responses import ClientFailure, ClientResponse
from mor_router.clients.scoring import ScoreBatch, ScoreRequester
from mor_router.objectives.objective_store import Anchor, Objective
from mor_router.store import key

_BATCH_ANCHORS = 16
"""Anchors per request: what has been scored is kept when a later request fails."""
_ATTEMPTS = 3
"""Passes over the anchors without scores, in addition to the retries of each call."""
_MOST_DEADLINES = 20
"""Time for all anchors of a fit, in deadlines of a call: a client that answers each call just in time would otherwise
delay the fit of all. What it has scored is kept for the next fit."""
_CARD_TIMEOUT_S = 5.0
"""Seconds for the card of a running client."""

_PAIR: TypeAdapter[tuple[float, float]] = TypeAdapter(tuple[Finite, Finite])
_SCORES = StoredEntries("anchor_scores")

log = structlog.get_logger(__name__)


@dataclass
class AnchorScores:
    """Scores of one client for the anchors of an objective."""

    client: str
    model: ModelRef | None = None
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Digest of the anchor -> raw scores of (chosen, rejected)."""
    askable: int = 0
    """Anchors that the client may be sent."""
    problem: str | None = None
    """The last reason why an anchor has no score."""

    def restricted_to(self, digests: Collection[str]) -> AnchorScores:
        """Return the scores of some anchors."""
        return replace(self, scores={digest: pair for digest, pair in self.scores.items() if digest in digests})

    def array(self, anchors: Sequence[Anchor]) -> Float[ndarray, "pairs 2"]:
        """Return the scores in the order of ``anchors``; NaN where there are none."""
        missing = (np.nan, np.nan)
        return np.array([self.scores.get(anchor.digest, missing) for anchor in anchors], dtype=float).reshape(-1, 2)


def _item(anchor: Anchor, objective: Objective, swapped: bool) -> ScoreItem:
    responses = (anchor.rejected, anchor.chosen) if swapped else (anchor.chosen, anchor.rejected)
    return ScoreItem(item_id=anchor.digest, messages=anchor.messages, responses=responses, objective=objective.text)


def _field(client: str, model: ModelRef, anchor: Anchor) -> str:
    return json.dumps([client, model.name, model.version, anchor.digest])


class AnchorScorer:
    """Requests for anchor scores, with a cache in Redis."""

    def __init__(self, redis: Redis, pool: ClientPool, requester: ScoreRequester, deadline_s: float) -> None:
        self._redis = redis
        self._pool = pool
        self._requester = requester
        self._deadline_s = deadline_s

    async def score(
        self, client: str, objective: Objective, anchors: Sequence[Anchor], images: Mapping[str, bytes]
    ) -> AnchorScores:
        """Return one client's scores of those ``anchors`` that it may be sent: cached ones of its present model, and
        the rest requested."""
        anchors = [anchor for anchor in anchors if self._pool.refusal(client, anchor.origin) is None]
        result = AnchorScores(client, askable=len(anchors))
        if not anchors:
            result.problem = "its rule, or its card's wish, allows none of the anchors"
            return result
        try:
            result.model = (await self._pool.client(client).card(_CARD_TIMEOUT_S)).model
        except (ClientFailure, NotFound) as failure:  # removed meanwhile
            result.problem = str(failure)
            return result
        result.scores = await self.cached(client, result.model, objective, anchors)
        until = time.monotonic() + _MOST_DEADLINES * self._deadline_s
        for _ in range(_ATTEMPTS):
            missing = [anchor for anchor in anchors if anchor.digest not in result.scores]
            for start in range(0, len(missing), _BATCH_ANCHORS):
                if time.monotonic() > until:
                    result.problem = f"too slow: {len(result.scores)} anchors in {_MOST_DEADLINES} times MOR_DEADLINE_S"
                    return result
                await self._request(result, objective, missing[start : start + _BATCH_ANCHORS], images)
        return result

    async def cached(
        self, client: str, model: ModelRef, objective: Objective, anchors: Sequence[Anchor]
    ) -> dict[str, tuple[float, float]]:
        """Return the stored raw scores of (chosen, rejected) of a client's model, by digest."""
        names = [_field(client, model, anchor) for anchor in anchors]
        if not names:
            return {}
        place = key("scores", objective.name)
        values: list[Any] = await _SCORES.read(
            place, _SCORES.fetch(self._redis, "HMGET", place, *names), [None] * len(names)
        )
        stored = dict(zip((anchor.digest for anchor in anchors), values, strict=True))
        return await asyncio.to_thread(_SCORES.parse_all, stored, lambda _, value: _PAIR.validate_json(value))

    async def forget(self, objective: Objective, scored: Sequence[AnchorScores], anchors: Sequence[Anchor]) -> None:
        """Delete the stored scores of pairs that are no anchors."""
        names = [
            _field(line.client, line.model, anchor) for line in scored if line.model is not None for anchor in anchors
        ]
        if names:
            await self._redis.hdel(key("scores", objective.name), *names)

    async def _request(
        self, result: AnchorScores, objective: Objective, anchors: Sequence[Anchor], images: Mapping[str, bytes]
    ) -> None:
        # The order is random and independent of the anchor, so that it does not reveal the preferred response.
        swapped = {anchor.digest: secrets.randbelow(2) == 1 for anchor in anchors}
        batch = ScoreBatch(
            [_item(anchor, objective, swapped[anchor.digest]) for anchor in anchors],
            images,
            origins={anchor.digest: anchor.origin for anchor in anchors},
        )
        answers = await self._requester.request(result.client, batch, self._deadline_s)
        new: dict[Any, Any] = {}
        for anchor, item in zip(anchors, batch.items, strict=True):
            answer: ClientResponse = answers[item.item_id]
            if answer.scores is None or answer.model is None:
                result.problem = answer.detail
                continue
            if answer.model != result.model:
                result.problem = f"the model changed to {answer.model.name} {answer.model.version} meanwhile; fit again"
                continue
            first, second = answer.scores
            result.scores[anchor.digest] = (second, first) if swapped[anchor.digest] else (first, second)
            new[_field(result.client, answer.model, anchor)] = json.dumps(result.scores[anchor.digest])
        if new:
            place = key("scores", objective.name)
            await _SCORES.write(self._redis, {place: "hash"}, lambda: self._redis.hset(place, mapping=new))

    async def prune(self, objective: Objective, scored: Sequence[AnchorScores]) -> None:
        """Delete the cached scores of models that the clients no longer serve: each fit may meet another version."""
        serves = {line.client: [line.model.name, line.model.version] for line in scored if line.model is not None}
        old: list[bytes] = []
        async with aclosing(_SCORES.fetch_pages(self._redis, key("scores", objective.name))) as pages:
            async for page in pages:
                for name, (client, *model) in _SCORES.parse_all(page, lambda name, _: json.loads(name)[:3]).items():
                    if serves.get(client, model) != model:
                        old.append(name)
        if old:
            await self._redis.hdel(key("scores", objective.name), *old)


async def score_all(
    scorer: AnchorScorer,
    clients: Sequence[str],
    objective: Objective,
    anchors: Sequence[Anchor],
    images: Mapping[str, bytes],
) -> list[AnchorScores]:
    """Return every client's scores; all clients are called at once."""
    found = list(await asyncio.gather(*(scorer.score(client, objective, anchors, images) for client in clients)))
    await scorer.prune(objective, found)
    return found
