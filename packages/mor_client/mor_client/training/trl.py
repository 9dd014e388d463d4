"""Reward functions for TRL's ``GRPOTrainer``. Example::

    from mor_client.training.trl import reward

    trainer = GRPOTrainer(model=..., reward_funcs=reward("experts"), args=..., train_dataset=...)

Prompts may be texts or messages, with pictures in the column ``images`` or ``image``. A group without a quorum has no
reward, which TRL takes as ``None``: alone, the group then has advantages of 0 and moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mor_core.objectives import RequestedObjective

from mor_client.sdk import Mor
from mor_client.training.prompt_groups import MixtureRewards, ResponseRow, row_images


class MixtureReward:
    """Reward function that blocks while the clients score."""

    def __init__(self, rewards: MixtureRewards, name: str) -> None:
        self._rewards = rewards
        self.__name__ = name
        """Name of the reward in TRL's logs."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return self._rewards.of(_rows(prompts, completions, columns))


class AsyncMixtureReward(MixtureReward):
    """Reward function that TRL runs at the same time as others."""

    async def __call__(  # type: ignore[override]
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> list[float | None]:
        return await self._rewards.of_async(_rows(prompts, completions, columns))


def reward(
    objective: RequestedObjective | None = None,
    *,
    num_generations: int | None = None,
    deadline_s: float | None = None,
    asynchronous: bool = False,
    name: str = "mor",
    mor: Mor | None = None,
) -> MixtureReward:
    """Make a reward function.

    Args:
        objective: name, text or blend, see ``docs/objectives.md``.
        num_generations: that of ``GRPOConfig``. With it, a batch that holds a part of a group is an error.
        deadline_s: seconds that clients have to score; by default the router's.
        asynchronous: for TRL to run it at the same time as other asynchronous reward functions.
        name: name of the reward in TRL's logs.
        mor: the installation; by default that of the environment and the configuration file.
    """
    rewards = MixtureRewards(objective, group_size=num_generations, deadline_s=deadline_s, mor=mor)
    return (AsyncMixtureReward if asynchronous else MixtureReward)(rewards, name)


def _rows(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[ResponseRow]:
    """Return the rows of a call. TRL puts the pictures into the messages of a prompt, and leaves them in their column;
    a prompt that is a text has them in the column alone."""
    shown = [row_images(columns, place) for place in range(len(prompts))]
    return [
        ResponseRow(prompt, completion, images if isinstance(prompt, str) or not _carries_pictures(prompt) else ())
        for prompt, completion, images in zip(prompts, completions, shown, strict=True)
    ]


def _carries_pictures(prompt: Sequence[Any]) -> bool:
    parts = [part for turn in prompt if isinstance(turn["content"], list) for part in turn["content"]]
    return any(part.get("image") is not None for part in parts)
