"""Groups of a run, without its streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mor_router.rewarding.group_batch import GroupBatch
from mor_router.routes.rewards import item_reward
from mor_router.schemas import RewardRequest
from mor_router.wiring import Router


async def reward_groups(
    router: Router, items: Sequence[dict[str, Any]], images: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Reward groups as the reward stage does, and return the outcomes in the shape of ``/v1/reward``.

    ``images``: base64 by hash.
    """
    request = RewardRequest.model_validate({"items": items, "images": images})
    batch = GroupBatch(request.items, request.images)
    outcomes, _ = await router.rewarding.pipeline.reward(batch, router.resources.settings.deadline_s)
    return [item_reward(outcome).model_dump(mode="json") for outcome in outcomes]
