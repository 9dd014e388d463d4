"""Labeller that calls a checker over the reward contract, within the same bounds as a client."""

from __future__ import annotations

import secrets

from mor_core.errors import Unavailable
from mor_core.wire import ScoreItem

from mor_router.clients.client import RewardClient
from mor_router.learning.labels.labeller import Pair, SampledGroup, ordered_pairs


class CheckerLabeller:
    """Labeller by the scores of a checker."""

    def __init__(self, client: RewardClient) -> None:
        self._client = client

    async def label(self, sampled: SampledGroup, objective: str, timeout_s: float) -> tuple[Pair, ...]:
        item = ScoreItem(
            item_id=secrets.token_hex(16),
            messages=sampled.messages,
            responses=sampled.responses,
            objective=objective,
        )
        answer = (await self._client.score([item], sampled.images, timeout_s))[item.item_id]
        if answer.status == "unscorable":
            return ()
        if answer.scores is None:
            raise Unavailable(f"the checker at {self._client.record.url}: {answer.status}, {answer.detail}")
        return ordered_pairs(answer.scores)

    async def close(self) -> None:
        await self._client.close()
