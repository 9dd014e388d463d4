"""Environment for NeMo RL whose reward is the mixture's. In a module that the training imports::

    import ray
    from mor_client.training.nemo_rl import MixtureEnvironment

    environment = ray.remote(MixtureEnvironment).remote({"objective": "experts", "group_size": 8})

Each conversation ends with the response that is rewarded. NeMo RL knows no missing reward: a group without a quorum
raises ``NoReward``.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from mor_core.errors import Invalid

from mor_client.training.prompt_groups import MixtureRewards, ResponseRow

_OPTIONS = frozenset({"objective", "group_size", "deadline_s"})


class MixtureEnvironment:
    """Environment of one turn, in the shape of ``nemo_rl.environments.interfaces.EnvironmentInterface``."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """``config``: ``objective``, ``group_size`` (``grpo.num_generations_per_prompt``) and ``deadline_s``.

        Raises:
            Invalid: ``config`` has another field.
        """
        if unknown := config.keys() - _OPTIONS:
            raise Invalid(f"unknown option {sorted(unknown)[0]!r}; give {', '.join(sorted(_OPTIONS))}")
        self._rewards = MixtureRewards(**config)

    def rewards(self, message_log_batch: Sequence[Sequence[Mapping[str, Any]]]) -> list[float]:
        """Return the reward of each conversation.

        Raises:
            NoReward: a group has no reward.
            Invalid: a conversation does not end with the assistant's turn, or a part of a group is missing.
            ServiceError: the router refused, failed or did not respond.
        """
        return self._rewards.required([_row(log) for log in message_log_batch])

    def step(self, message_log_batch: Sequence[Sequence[Mapping[str, Any]]], metadata: Sequence[Any]) -> Any:
        """Reward the responses and end the conversations; return NeMo RL's ``EnvironmentReturn``."""
        torch = importlib.import_module("torch")
        returned = importlib.import_module("nemo_rl.environments.interfaces").EnvironmentReturn
        rewards = self.rewards(message_log_batch)
        count = len(rewards)
        return returned(
            observations=[{"role": "environment", "content": ""}] * count,
            metadata=[None] * count,
            next_stop_strings=[None] * count,
            rewards=torch.tensor(rewards),
            terminateds=torch.ones(count, dtype=torch.bool),
            answers=[row.response for row in map(_row, message_log_batch)],
        )

    def global_post_process_and_metrics(self, batch: Any) -> tuple[Any, dict[str, float]]:
        """Return the batch as it is, and the mean of its rewards."""
        rewards = batch.get("rewards")
        return batch, {} if rewards is None else {"mor/mean_reward": float(rewards.mean())}

    def shutdown(self) -> None:
        """Do nothing: there is no connection between calls."""


def _row(log: Sequence[Mapping[str, Any]]) -> ResponseRow:
    if not log or log[-1].get("role") != "assistant":
        raise Invalid("a conversation does not end with the assistant's turn, which is what is rewarded")
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in log]  # without NeMo RL's token ids
    return ResponseRow(turns[:-1], turns[-1]["content"])
