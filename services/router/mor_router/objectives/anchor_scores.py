"""Raw scores of an objective's anchors by client: asked once for each model version, kept, resumed where it stopped."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import structlog
from jaxtyping import Float
from mor_core.wire import ModelRef, ScoreItem
from numpy import ndarray
from redis.asyncio import Redis

from mor_router.clients.pool import Pool
from mor_router.clients.responses import Answer, ClientFailure
from mor_router.clients.scoring import Batch, Scoring
from mor_router.objectives.objectives import Anchor, Objective
from mor_router.store import key

_BATCH = 16
_ATTEMPTS = 3
_CARD_TIMEOUT_S = 5.0

log = structlog.get_logger(__name__)


@dataclass
class AnchorScores:
    """What one client said about the anchors."""

    client: str
    model: ModelRef | None = None
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Digest of the anchor -> raw scores of (chosen, rejected)."""
    asked: int = 0
    """Anchors that were not in the cache."""
    problem: str | None = None
    """The last reason why an anchor has no score."""

    def of(self, digests: Collection[str]) -> AnchorScores:
        """What it said of some anchors."""
        return replace(self, scores={digest: pair for digest, pair in self.scores.items() if digest in digests})

    def array(self, anchors: Sequence[Anchor]) -> Float[ndarray, "pairs 2"]:
        """Scores in the order of ``anchors``; NaN where there are none."""
        missing = (np.nan, np.nan)
        return np.array([self.scores.get(anchor.digest, missing) for anchor in anchors], dtype=float).reshape(-1, 2)


def _item(anchor: Anchor, objective: Objective, swapped: bool) -> ScoreItem:
    responses = (anchor.rejected, anchor.chosen) if swapped else (anchor.chosen, anchor.rejected)
    return ScoreItem(item_id=anchor.digest, messages=anchor.messages, responses=responses, objective=objective.text)


class AnchorScorer:
    def __init__(self, redis: Redis, pool: Pool, scoring: Scoring, deadline_s: float) -> None:
        self._redis = redis
        self._pool = pool
        self._scoring = scoring
        self._deadline_s = deadline_s

    async def score(
        self, client: str, objective: Objective, anchors: Sequence[Anchor], images: Mapping[str, bytes]
    ) -> AnchorScores:
        """One client's scores of ``anchors``: from the cache what its present model scored already, the rest asked."""
        result = AnchorScores(client)
        try:
            result.model = (await self._pool.client(client).card(_CARD_TIMEOUT_S)).model
        except ClientFailure as failure:
            result.problem = str(failure)
            return result
        await self._recall(result, objective, anchors)
        for _ in range(_ATTEMPTS):
            waiting = [anchor for anchor in anchors if anchor.digest not in result.scores]
            for start in range(0, len(waiting), _BATCH):
                await self._ask(result, objective, waiting[start : start + _BATCH], images)
        return result

    def _field(self, client: str, model: ModelRef, anchor: Anchor) -> str:
        return json.dumps([client, model.name, model.version, anchor.digest])

    async def _recall(self, result: AnchorScores, objective: Objective, anchors: Sequence[Anchor]) -> None:
        assert result.model is not None
        names = [self._field(result.client, result.model, anchor) for anchor in anchors]
        values: Any = await self._redis.hmget(key("scores", objective.name), names)
        result.scores = {
            anchor.digest: tuple(json.loads(value))
            for anchor, value in zip(anchors, values, strict=True)
            if value is not None
        }
        result.asked = len(anchors) - len(result.scores)

    async def _ask(
        self, result: AnchorScores, objective: Objective, anchors: Sequence[Anchor], images: Mapping[str, bytes]
    ) -> None:
        # A random order that nothing about the anchor tells, lest it say which response is preferred.
        swapped = {anchor.digest: secrets.randbelow(2) == 1 for anchor in anchors}
        batch = Batch([_item(anchor, objective, swapped[anchor.digest]) for anchor in anchors], images)
        answers = await self._scoring.ask(result.client, batch, self._deadline_s)
        kept: dict[Any, Any] = {}
        for anchor, item in zip(anchors, batch.items, strict=True):
            answer: Answer = answers[item.item_id]
            if answer.scores is None or answer.model is None:
                result.problem = answer.detail
                continue
            if answer.model != result.model:
                result.problem = f"the model changed to {answer.model.name} {answer.model.version} meanwhile; fit again"
                continue
            first, second = answer.scores
            result.scores[anchor.digest] = (second, first) if swapped[anchor.digest] else (first, second)
            kept[self._field(result.client, answer.model, anchor)] = json.dumps(result.scores[anchor.digest])
        if kept:
            await self._redis.hset(key("scores", objective.name), mapping=kept)


async def score_all(
    scorer: AnchorScorer,
    clients: Sequence[str],
    objective: Objective,
    anchors: Sequence[Anchor],
    images: Mapping[str, bytes],
) -> list[AnchorScores]:
    """Every client's scores, all clients at once."""
    return list(await asyncio.gather(*(scorer.score(client, objective, anchors, images) for client in clients)))
