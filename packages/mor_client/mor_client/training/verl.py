"""Reward manager for verl that sees prompts and pictures. In a module that the training imports::

    from mor_client.training.verl import register

    register("mor", objective="experts")

and ``reward_model.reward_manager=mor data.return_raw_chat=True`` on the command line. verl knows no missing reward: a
group without a quorum ends the training step with ``NoReward``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from mor_core.errors import Invalid
from mor_core.objectives import RequestedObjective

from mor_client.sdk import Mor
from mor_client.training.prompt_groups import MixtureRewards, ResponseRow, row_images


class MixtureRewardManager:
    """Reward manager by one objective: a reward at the last token of each response."""

    objective: RequestedObjective | None = None
    options: Mapping[str, Any] = {}
    """Further arguments of ``MixtureRewards``."""

    def __init__(
        self, tokenizer: Any, num_examine: int = 0, compute_score: Any = None, reward_fn_key: str = "", **_: Any
    ) -> None:
        """Take the arguments that verl passes to every manager; only ``tokenizer`` is used."""
        self.tokenizer = tokenizer
        self._rewards = MixtureRewards(self.objective, **self.options)

    def __call__(self, data: Any, return_dict: bool = False) -> Any:
        """Return the rewards of a ``DataProto`` as a tensor of the responses' shape.

        Raises:
            NoReward: a group has no reward.
            Invalid: the batch has no ``raw_prompt``, or a part of a group.
            ServiceError: the router refused, failed or did not respond.
        """
        if "rm_scores" in data.batch:
            found = data.batch["rm_scores"]
        else:
            lengths = self._response_lengths(data)
            rewards = self._rewards.required(self._rows(data, lengths))
            found = data.batch["responses"].new_zeros(data.batch["responses"].shape).float()
            for place, (length, reward) in enumerate(zip(lengths, rewards, strict=True)):
                found[place, max(length, 1) - 1] = reward
        return {"reward_tensor": found, "reward_extra_info": {}} if return_dict else found

    def _response_lengths(self, data: Any) -> list[int]:
        prompt_length = data.batch["prompts"].shape[-1]
        lengths: list[int] = data.batch["attention_mask"][:, prompt_length:].sum(-1).tolist()
        return lengths

    def _rows(self, data: Any, lengths: list[int]) -> list[ResponseRow]:
        columns = data.non_tensor_batch
        if "raw_prompt" not in columns:
            raise Invalid("the batch has no 'raw_prompt'; set data.return_raw_chat=True")
        rows = []
        for place, length in enumerate(lengths):
            text = self.tokenizer.decode(data.batch["responses"][place][:length], skip_special_tokens=True)
            shown = columns["multi_modal_data"][place] if "multi_modal_data" in columns else {}
            pictures = row_images({name: [value] for name, value in shown.items()}, 0)
            rows.append(ResponseRow(list(columns["raw_prompt"][place]), text, pictures))
        return rows


def register(name: str = "mor", objective: RequestedObjective | None = None, **options: Any) -> type:
    """Add the reward manager to verl under ``name``, and return its class.

    Args:
        objective: name, text or blend, see ``docs/objectives.md``.
        options: ``group_size`` (``actor_rollout_ref.rollout.n``), ``deadline_s``, ``mor``.

    Raises:
        Invalid: verl is not installed.
    """
    try:
        registry = importlib.import_module("verl.workers.reward_manager")
    except ImportError as error:
        raise Invalid("verl cannot be imported; install it beside mor-client") from error
    manager: type = registry.register(name)(reward_manager(objective, **options))
    return manager


def reward_manager(
    objective: RequestedObjective | None = None,
    *,
    group_size: int | None = None,
    deadline_s: float | None = None,
    mor: Mor | None = None,
) -> type[MixtureRewardManager]:
    """Make the class of a reward manager, for a verl that takes it by its path."""
    options = {"group_size": group_size, "deadline_s": deadline_s, "mor": mor}
    return type("MixtureRewardManager", (MixtureRewardManager,), {"objective": objective, "options": options})
