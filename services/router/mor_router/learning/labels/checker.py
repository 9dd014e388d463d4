"""A checker behind the reward contract: called like a client, within the same bounds."""

from __future__ import annotations

import secrets

from mor_core.errors import Unavailable
from mor_core.wire import ScoreItem

from mor_router.clients.client import RewardClient
from mor_router.learning.labels.labeller import Pair, Sampled, best_and_worst


class EndpointChecker:
    def __init__(self, client: RewardClient) -> None:
        self._client = client

    async def label(self, sampled: Sampled, objective: str, timeout_s: float) -> Pair | None:
        item = ScoreItem(
            item_id=secrets.token_hex(16),
            messages=sampled.messages,
            responses=sampled.responses,
            objective=objective,
        )
        answer = (await self._client.score([item], sampled.images, timeout_s))[item.item_id]
        if answer.status == "unscorable":
            return None
        if answer.scores is None:
            raise Unavailable(f"the checker at {self._client.record.url}: {answer.status}, {answer.detail}")
        return best_and_worst(answer.scores)

    async def close(self) -> None:
        await self._client.close()
