"""Training of an adapter on one client's preference pairs, by SFT on the preferred answers or by DPO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal, TypeVar

import torch
from torch import Tensor

from quality.federated.adapters import Adapter, proximal
from quality.federated.compute import Ledger
from quality.federated.losses import dpo, sft
from quality.federated.policy import Policy, Response

Objective = Literal["sft", "dpo"]
Item = TypeVar("Item")
RATES: dict[Objective, float] = {"sft": 2e-3, "dpo": 3e-3}
"""Learning rates of AdamW, chosen by FedAvg's arms on ``--questions dev``, SFT's of 2e-3 and 6e-3, DPO's of 1e-3 and
3e-3."""
_BETA = 0.1
"""β of DPO, its paper's."""
_CLIP = 1.0
"""Maximum norm of the gradients."""


@dataclass(frozen=True)
class Pair:
    """Encoded preference pair."""

    chosen: Response
    rejected: Response
    domain: str


@dataclass(frozen=True)
class Recipe:
    """Local training of a client."""

    objective: Objective
    batch: int
    rate: float
    prox: float = 0.0
    """Strength μ of FedProx's proximal term; 0 is FedAvg."""


def train(
    policy: Policy, pairs: Sequence[Pair], steps: int, recipe: Recipe, ledger: Ledger, place: str, seed: str
) -> Adapter:
    """Take gradient steps from the policy's present adapter, and return the new one.

    The optimiser's state begins anew, as in FedAvg, where a client keeps nothing between rounds.
    """
    common = policy.adapter()
    parameters = policy.parameters()
    optimiser = torch.optim.AdamW(parameters.values(), lr=recipe.rate, weight_decay=0.0)
    for batch in islice(batches(pairs, recipe.batch, seed), steps):
        loss = _loss(policy, batch, recipe.objective)
        if recipe.prox:
            loss = loss + proximal(parameters, common, recipe.prox)
        step(optimiser, loss)
        ledger.stepped(place, len(batch))
    return policy.adapter()


def step(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """Take one gradient step with a bounded gradient."""
    optimiser.zero_grad()
    torch.autograd.backward(loss)
    for group in optimiser.param_groups:
        torch.nn.utils.clip_grad_norm_(group["params"], _CLIP)
    optimiser.step()


def batches(items: Sequence[Item], size: int, seed: str) -> Iterator[list[Item]]:
    """Yield batches of exactly ``size`` without end, pass after pass in a new order."""
    rng = Random(seed)
    left: list[Item] = []
    while True:
        while len(left) < size:
            left += rng.sample(items, len(items))
        yield left[:size]
        left = left[size:]


def _loss(policy: Policy, batch: Sequence[Pair], objective: Objective) -> Tensor:
    chosen, rejected = [pair.chosen for pair in batch], [pair.rejected for pair in batch]
    if objective == "sft":
        return sft(*policy.log_probs(chosen))
    with torch.no_grad(), policy.reference():
        reference = policy.log_probs([*chosen, *rejected])[0].sum(dim=1)
    found = policy.log_probs([*chosen, *rejected])[0].sum(dim=1)
    half = len(batch)
    return dpo(found[:half], found[half:], reference[:half], reference[half:], _BETA)
