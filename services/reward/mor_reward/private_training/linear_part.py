"""The part of a backbone in which its score is linear, as features of a logistic regression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mor_reward.backbones import Backbone
from mor_reward.preference_trainer import PreferencePair

_PAIRS_TOGETHER = 32
"""Pairs of one forward pass; bounds memory."""


@dataclass(frozen=True)
class LinearPairs:
    """Pairs as seen by the linear part: the margin of parameters θ is ``margins`` + ``features`` · (θ − θ₀)."""

    features: Float[np.ndarray, "pairs dim"]
    margins: Float[np.ndarray, " pairs"]
    """Margins at θ₀, the parameters of the backbone as it is."""
    blocks: tuple[int, ...]
    """Number of coordinates of each parameter, in the order of ``Backbone.linear_part``."""


def linearise(
    backbone: Backbone, pairs: Sequence[PreferencePair], advance: Callable[[int], None] = lambda done: None
) -> LinearPairs:
    """Compute features and margins of ``pairs``. ``advance`` is called with the number of pairs done.

    The features are the gradient of the margin, which for a linear part is its input, whatever the architecture.
    """
    backbone.eval()
    part = backbone.linear_part()
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    backbone.requires_grad_(False)
    for parameter in part:
        parameter.requires_grad_(True)
    try:
        features, margins = [], []
        for start in range(0, len(pairs), _PAIRS_TOGETHER):
            chunk = pairs[start : start + _PAIRS_TOGETHER]
            scores = backbone([example for pair in chunk for example in (pair.chosen, pair.rejected)])
            difference = scores[0::2] - scores[1::2]
            features += [_gradient(margin, part) for margin in difference]
            margins.append(difference.detach().double().cpu().numpy())
            advance(start + len(chunk))
    finally:
        backbone.requires_grad_(False)
        for parameter in trained:
            parameter.requires_grad_(True)
    blocks = tuple(parameter.numel() for parameter in part)
    return LinearPairs(np.stack(features), np.concatenate(margins), blocks)


def move(backbone: Backbone, change: Float[np.ndarray, " dim"]) -> None:
    """Add ``change``, a difference of the linear part's parameters, to them."""
    start = 0
    with torch.no_grad():
        for parameter in backbone.linear_part():
            own = torch.from_numpy(change[start : start + parameter.numel()]).view_as(parameter)
            parameter.add_(own.to(parameter.device, parameter.dtype))
            start += parameter.numel()


def _gradient(margin: Tensor, part: list[Tensor]) -> Float[np.ndarray, " dim"]:
    gradients = torch.autograd.grad(margin, part, retain_graph=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients]).double().cpu().numpy()
