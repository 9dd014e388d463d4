"""Reward function for ms-swift's GRPO. In the file that ``--external_plugins`` names::

    from mor_client.training.swift import register

    register("mor", objective="experts")

and ``--reward_funcs mor`` on the command line. A group without a quorum has no reward, which ms-swift takes as
``None``.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from mor_core.errors import Invalid
from mor_core.objectives import RequestedObjective

from mor_client.sdk import Mor
from mor_client.training.prompt_groups import MixtureRewards, ResponseRow, row_images

_HOMES = ("swift.rewards", "swift.plugin")
"""Modules with the table ``orms``: of ms-swift 4, and of 3."""


def reward_class(
    objective: RequestedObjective | None = None,
    *,
    num_generations: int | None = None,
    deadline_s: float | None = None,
    mor: Mor | None = None,
) -> type:
    """Make a class as ms-swift's table ``orms`` has them: it is created with the arguments of the training, and called
    with the completions and the columns of the data.

    Args:
        objective: name, text or blend, see ``docs/objectives.md``.
        num_generations: that of the training. With it, a batch that holds a part of a group is an error.
        deadline_s: seconds that clients have to score; by default the router's.
        mor: the installation; by default that of the environment and the configuration file.
    """
    rewards = MixtureRewards(objective, group_size=num_generations, deadline_s=deadline_s, mor=mor)

    class SwiftReward:
        def __init__(self, args: Any = None, **_: Any) -> None:
            self.args = args

        def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
            return rewards.of(_rows(completions, columns))  # not asynchronous, which ms-swift 3 does not take

    return SwiftReward


def register(name: str = "mor", objective: RequestedObjective | None = None, **options: Any) -> None:
    """Add the reward function to ms-swift under ``name``; ``options`` are those of ``reward_class``.

    Raises:
        Invalid: ms-swift is not installed.
    """
    for home in _HOMES:
        try:
            table = importlib.import_module(home).orms
        except (ImportError, AttributeError):
            continue
        table[name] = reward_class(objective, **options)
        return
    raise Invalid(f"neither of {', '.join(_HOMES)} has a table 'orms'; install ms-swift 3 or 4 beside mor-client")


def _rows(completions: Sequence[Any], columns: dict[str, Any]) -> list[ResponseRow]:
    """Return the rows of a call. ms-swift passes the whole conversation as ``messages``, the response included."""
    if "messages" not in columns:
        raise Invalid("ms-swift passed no column 'messages'; give the data a prompt in it")
    rows = []
    for place, completion in enumerate(completions):
        turns = list(columns["messages"][place])
        prompt = turns[:-1] if turns and turns[-1].get("role") == "assistant" else turns
        rows.append(ResponseRow(prompt, completion, row_images(columns, place)))
    return rows
