"""Log-probabilities of chosen tokens, computed for a bounded number of logits at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
"""Map of hidden states ``[n, width]`` to logits ``[n, vocab]``."""

_CHUNK_ELEMENTS = 1 << 24
"""Logits that exist at once: 64 MB in float32, little compared with a model's own memory."""


def chosen_logprobs(
    hidden: Float[Tensor, "n width"],
    head: Head,
    chosen: Int[Tensor, " n"],
    *,
    temperature: float,
    forbidden: Int[Tensor, " k"],
    vocabulary: int,
    chunk_elements: int = _CHUNK_ELEMENTS,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Compute log-probabilities of the chosen ids and entropies of the sampling distributions, in nats.

    The sampling distribution is softmax(logits / temperature) over the ids that are not ``forbidden``, as the engine
    samples. At most ``chunk_elements`` logits exist at once. With more than one chunk, the backward pass computes a
    chunk's logits again instead of keeping them. The entropy carries no gradient.
    """

    def scored(states: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        if temperature != 1.0:
            logits = logits / temperature
        if len(forbidden):
            logits = logits.index_fill(-1, forbidden, float("-inf"))
        normaliser = logits.logsumexp(-1)
        logprobs = logits.gather(-1, ids[:, None])[:, 0] - normaliser
        with torch.no_grad():
            expected = torch.einsum(
                "nv,nv->n", (logits - normaliser[:, None]).exp(), logits.masked_fill(logits.isneginf(), 0.0)
            )
        return logprobs, normaliser.detach() - expected

    rows = max(1, chunk_elements // vocabulary)
    if len(hidden) <= rows:
        return scored(hidden, chosen)
    parts = [
        checkpoint(scored, states, ids, use_reentrant=False)
        for states, ids in zip(torch.split(hidden, rows), torch.split(chosen, rows), strict=True)
    ]
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
