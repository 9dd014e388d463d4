"""OpenRLHF's remote reward model: texts to rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from mor_core.wire import Finite, Wire
from pydantic import AliasChoices, Field

from mor_reward.upstream.upstream_answers import parse
from mor_reward.upstream.upstream_protocol import CallPath, Calls, Group, Upstream, chosen, per_response


class _Rewards(Wire):
    rewards: tuple[Finite | tuple[Finite, ...], ...] = Field(validation_alias=AliasChoices("rewards", "scores"))


class OpenRLHF(Upstream):
    """``POST /get_reward`` with ``query``, the whole texts, and ``prompts``; answers ``rewards``."""

    health: ClassVar[str] = "/"

    protocol: Literal["openrlhf"] = "openrlhf"
    path: CallPath = "/get_reward"
    label: int | None = Field(None, ge=0)
    """Index of the score where the upstream returns several for a response."""

    async def score(self, group: Group, calls: Calls) -> Sequence[float | None]:
        body = {"query": group.texts, "prompts": [group.prompt] * len(group.texts)}
        (answer,) = await calls.post(self.path, [body])
        rewards = per_response(parse(_Rewards, answer).rewards, group)
        return [
            chosen(reward if isinstance(reward, tuple) else (reward,), self.label, probabilities=False)
            for reward in rewards
        ]
