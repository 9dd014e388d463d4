"""Mathematics of averaged adapters: FedAvg's mean and FedProx's proximal term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Adapter = dict[str, Tensor]
"""LoRA matrices by their names."""


def weighted_mean(adapters: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> Adapter:
    """Compute Σ_k (n_k / n) θ_k (FedAvg, McMahan et al. 2017, arXiv 1602.05629, algorithm 1).

    As usual for LoRA, its two matrices are averaged one by one: the mean of products would have a larger rank.
    """
    total = sum(weights)
    if not adapters or total <= 0:
        raise ValueError(
            f"{len(adapters)} adapters of total weight {total:g}; at least one of positive weight is needed"
        )
    first = adapters[0]
    if any(adapter.keys() != first.keys() for adapter in adapters):
        raise ValueError("the adapters have different matrices; all clients need the same base model and rank")
    return {
        name: torch.stack([adapter[name] * (weight / total) for adapter, weight in zip(adapters, weights, strict=True)])
        .sum(dim=0)
        .detach()
        for name in first
    }


def proximal(adapter: Mapping[str, Tensor], common: Mapping[str, Tensor], strength: float) -> Float[Tensor, ""]:
    """Compute μ/2 ‖θ − θ_t‖², the distance to the round's common adapter (FedProx, arXiv 1812.06127, eq. 2)."""
    terms = [(adapter[name] - common[name].detach()).square().sum() for name in adapter]
    return 0.5 * strength * torch.stack(terms).sum()


def size(adapter: Mapping[str, Tensor]) -> int:
    """Return the bytes of an adapter on the wire."""
    return sum(value.numel() * value.element_size() for value in adapter.values())
