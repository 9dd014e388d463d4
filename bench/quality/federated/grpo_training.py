"""Training of the server's policy by GRPO in this process, with any reward and advantage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from quality.federated.adapters import Adapter
from quality.federated.compute import SERVER
from quality.federated.federation import Federation
from quality.federated.local_training import batches, step
from quality.federated.losses import grpo
from quality.group_scores import Rewards
from quality.scoring import Group

GROUP_SIZE = 8
"""Responses of a group, as in the demonstration."""
_GROUPS = 8
"""Most groups of a step."""
RATE = 1e-3
"""Learning rate of AdamW, chosen by MoR's arm on ``--questions dev``, of 1e-3 and 3e-3."""
_BETA = 0.05
"""Weight of the KL penalty, the demonstration's."""

Reward = Callable[[Sequence[Group]], Rewards]
Advantage = Callable[[Float[Tensor, "groups size"]], Float[Tensor, "groups size"]]


def train_by_reward(federation: Federation, reward: Reward, advantage: Advantage) -> Adapter:
    """Spend the server's budget: sample groups, have them rewarded, take one gradient step, and so on.

    ``reward`` sees text only, and counts its bytes itself.
    """
    policy, ledger = federation.policy, federation.ledger
    policy.load(policy.start)
    optimiser = torch.optim.AdamW(policy.parameters().values(), lr=RATE * federation.rate, weight_decay=0.0)
    order = batches(federation.prompts, _GROUPS, str(federation.seed))
    plan = _plan(federation.budget.of_server(len(federation.pairs)))
    for number, (groups, drawn) in enumerate(zip(plan, order, strict=False)):
        prompts = drawn[:groups]
        asked = [prompt.asked for prompt in prompts for _ in range(GROUP_SIZE)]
        responses = policy.sample(asked, seed=federation.seed * 1_000_003 + number)
        texts = [policy.text(response) for response in responses]
        made = [
            Group(prompt.group.prompt, texts[start : start + GROUP_SIZE])
            for start, prompt in zip(range(0, len(texts), GROUP_SIZE), prompts, strict=True)
        ]
        advantages = advantage(torch.from_numpy(np.asarray(reward(made))).float()).flatten()
        with torch.no_grad(), policy.reference():
            reference, _ = policy.log_probs(responses)
        found, mask = policy.log_probs(responses)
        step(optimiser, grpo(found, reference, mask, advantages, _BETA))
        ledger.stepped(SERVER, len(responses))
    return policy.adapter()


def _plan(responses: int) -> list[int]:
    """Divide the budget into steps of at most ``_GROUPS`` groups.

    Raises:
        ValueError: the budget is no multiple of a group.
    """
    groups, rest = divmod(responses, GROUP_SIZE)
    if rest:
        raise ValueError(
            f"{responses} responses are no multiple of a group of {GROUP_SIZE}; give another batch or steps"
        )
    whole, last = divmod(groups, _GROUPS)
    return [_GROUPS] * whole + ([last] if last else [])
