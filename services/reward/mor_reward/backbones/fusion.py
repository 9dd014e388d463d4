"""The trainable part of the dual encoder: what the question reads off the picture, compared with what is said."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional


class Attention(nn.Module):
    """Multi-head attention of queries to a memory (Vaswani et al. 2017), without an output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value = nn.Linear(width, 2 * width)

    def project(self, memory: Float[Tensor, "contexts places width"]) -> Float[Tensor, "2 contexts heads places dim"]:
        """Keys and values, to be computed once for a memory that several rows share."""
        rows, places, width = memory.shape
        both: Tensor = self.key_value(memory)
        return both.view(rows, places, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)

    def forward(
        self,
        queries: Float[Tensor, "rows tokens width"],
        keys_values: Float[Tensor, "2 rows heads places dim"],
        visible: Bool[Tensor, "rows places"] | None = None,
    ) -> Float[Tensor, "rows tokens width"]:
        mask = None if visible is None else visible[:, None, None, :]
        split = queries.view(*queries.shape[:2], self.heads, -1).transpose(1, 2)
        attended = functional.scaled_dot_product_attention(split, keys_values[0], keys_values[1], attn_mask=mask)
        return attended.transpose(1, 2).flatten(2)


class Fusion(nn.Module):
    """A scalar for each response from text features and patch features.

    The question asks a few slots to read the patches, once for all responses of a context (a Perceiver resampler,
    Jaegle et al. 2021, conditioned on text). Each token of a response attends to the slots, and the token, what it
    found, their product and the question are mixed: the product lets one layer say whether the two agree. Mean and
    maximum over the response's tokens give the score.
    """

    def __init__(
        self, text_dim: int, patch_dim: int, places: int, *, width: int, slots: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.text_in = nn.Sequential(nn.LayerNorm(text_dim), nn.Linear(text_dim, width))
        self.patch_in = nn.Sequential(nn.LayerNorm(patch_dim), nn.Linear(patch_dim, width))
        self.place = nn.Parameter(torch.randn(places, width) * 0.02)
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
        asked: Bool[Tensor, "contexts words"],
        patches: Float[Tensor, "contexts places patch_dim"],
        shown: Bool[Tensor, "contexts places"],
        response: Float[Tensor, "rows tokens text_dim"],
        said: Bool[Tensor, "rows tokens"],
        context: Int[Tensor, " rows"],
    ) -> Float[Tensor, " rows"]:
        """Scores of responses, the i-th to the context ``context[i]``.

        ``asked``, ``shown`` and ``said`` tell what is not padding. The pictures of a context stand one after another. A
        learnt place is always shown, so that a context without a picture is one with nothing to see.
        """
        seen = self.patch_in(patches) + self.place.repeat(patches.shape[1] // len(self.place), 1)
        memory = self.patch_norm(torch.cat([self.nothing.expand(len(seen), 1, -1), seen], dim=1))
        wanted = _mean(self.text_in(question), asked)
        queries = self.slots + self.ask(self.dropout(wanted)).view(-1, *self.slots.shape)
        found = self.read(queries, self.read.project(memory), functional.pad(shown, (1, 0), value=True))
        evidence = self.compare.project(self.slot_norm(found + self.digest(found)))

        token = self.dropout(self.text_in(response))
        match = self.compare(self.look_up(token), evidence[:, context])
        asking = wanted[context][:, None].expand_as(token)
        mixed = self.mix_norm(self.mix(torch.cat([token, match, token * match, asking], dim=-1)))
        most = mixed.masked_fill(~said[..., None], -torch.inf).amax(1)
        scores: Tensor = self.head(torch.cat([_mean(mixed, said), most], dim=-1)).squeeze(-1)
        return scores


def _mlp(norm: nn.Module, inputs: int, hidden: int, outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(norm, nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


def _mean(x: Float[Tensor, "rows tokens width"], real: Bool[Tensor, "rows tokens"]) -> Float[Tensor, "rows width"]:
    weight = real[..., None].to(x.dtype)
    mean: Tensor = (x * weight).sum(1) / weight.sum(1)
    return mean
