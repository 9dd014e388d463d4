"""Trainable part of the dual encoder: compares picture content relevant to the question with the response."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of queries to a memory (Vaswani et al. 2017). Deviation: no output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value = nn.Linear(width, 2 * width)

    def project(self, memory: Float[Tensor, "contexts patches width"]) -> Float[Tensor, "2 contexts heads patches dim"]:
        """Compute keys and values, once for a memory that several rows share."""
        rows, patches, width = memory.shape
        both: Tensor = self.key_value(memory)
        return both.view(rows, patches, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(
        self,
        queries: Float[Tensor, "rows tokens width"],
        keys_values: Float[Tensor, "2 rows heads patches dim"],
        visible: Bool[Tensor, "rows patches"] | None = None,
    ) -> Float[Tensor, "rows tokens width"]:
        mask = None if visible is None else visible[:, None, None, :]
        split = queries.view(*queries.shape[:2], self.heads, -1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(split, keys_values[0], keys_values[1], attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class FusionHead(nn.Module):
    """Map from text features and patch features to a scalar for each response.

    A Perceiver resampler (Jaegle et al. 2021) whose queries, a few slots, depend on the question: the slots read the
    patches once for all responses of a context. Each token of a response attends to the slots. An MLP mixes the token,
    the attended slots, their product and the question; the product lets one layer measure whether token and slots
    agree. A linear layer maps mean and maximum over the response's tokens to the score.
    """

    def __init__(
        self, text_dim: int, patch_dim: int, patches: int, *, width: int, slots: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.text_in = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.patch_in = nn.Sequential(nn.LayerNorm(patch_dim), nn.Linear(patch_dim, width))
        self.place = nn.Parameter(torch.randn(patches, width) * 0.02)
        self.nothing = nn.Parameter(torch.randn(width) * 0.02)
        self.patch_norm = nn.LayerNorm(width)
        self.slots = nn.Parameter(torch.randn(slots, width) * 0.1)
        self.ask = nn.Linear(width, slots * width)
        self.read = Attention(width, heads)
        self.digest = _mlp(nn.LayerNorm(width), width, 2 * width, width, dropout)
        self.slot_norm = nn.LayerNorm(width)
        self.look_up = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))
        self.compare = Attention(width, heads)
        self.mix = _mlp(nn.Identity(), 4 * width, width, width, dropout)
        self.mix_norm = nn.LayerNorm(width)
        self.head = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        *,
        question: Float[Tensor, "contexts words text_dim"],
        question_mask: Bool[Tensor, "contexts words"],
        patches: Float[Tensor, "contexts patches patch_dim"],
        patch_mask: Bool[Tensor, "contexts patches"],
        response: Float[Tensor, "rows tokens text_dim"],
        response_mask: Bool[Tensor, "rows tokens"],
        context: Int[Tensor, " rows"],
    ) -> Float[Tensor, " rows"]:
        """Score responses; response i belongs to context ``context[i]``.

        The masks are false at padding. The pictures of a context are concatenated. One learnt patch is always visible,
        so that a context without a picture has something to attend to.
        """
        seen = self.patch_in(patches) + self.place.repeat(patches.shape[1] // len(self.place), 1)
        memory = self.patch_norm(torch.cat([self.nothing.expand(len(seen), 1, -1), seen], dim=1))
        query = _mean(self.text_in(question), question_mask)
        queries = self.slots + self.ask(self.dropout(query)).view(-1, *self.slots.shape)
        found = self.read(queries, self.read.project(memory), functional.pad(patch_mask, (1, 0), value=True))
        evidence = self.compare.project(self.slot_norm(found + self.digest(found)))

        token = self.dropout(self.text_in(response))
        match = self.compare(self.look_up(token), evidence[:, context])
        query_of_row = query[context][:, None].expand_as(token)
        mixed = self.mix_norm(self.mix(torch.cat([token, match, token * match, query_of_row], dim=-1)))
        maximum = mixed.masked_fill(~response_mask[..., None], -torch.inf).amax(1)
        scores: Tensor = self.head(torch.cat([_mean(mixed, response_mask), maximum], dim=-1)).squeeze(-1)
        return scores


def _mlp(norm: nn.Module, inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(norm, nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def _mean(x: Float[Tensor, "rows tokens width"], real: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows width"]:
    weight = real[..., None].to(x.dtype)
    mean: Tensor = (x * weight).sum(1) / weight.sum(1)
    return mean
