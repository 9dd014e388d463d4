"""Attention over groups that are packed into one sequence, each prompt once.

For any model that attends through transformers' attention interface. A group lies in the sequence as its prompt and,
after it, its responses. The prompt is attended causally; a response sees the prompt and itself.

Queries of responses are attended tile by tile. A tile is a run of whole responses no longer than the prompt, or one
response. So masked products are never more than those that count, and short responses, the common case, are one tile.

Prompts of similar length take one call together, and so do tiles: on a GPU the many small calls of single groups would
cost more than their products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from mor_core.errors import Invalid
from torch import Tensor, nn

ATTENTION = "mor_shared_prompt"
"""Name of the implementation in transformers' ``AttentionInterface``."""

_MAX_PADDING = 1.5
"""Largest ratio of a call's products to those that count without its padding: few calls against few padded products."""


@dataclass(frozen=True)
class PromptGroup:
    """Numbers of tokens of a prompt and of the responses that follow it in the sequence."""

    prompt: int
    responses: Sequence[int]


@dataclass(frozen=True)
class AttentionCall:
    """Places in the sequence that are attended at once, padded on the right with places whose results are not used."""

    queries: Int[Tensor, "batch queries"]
    keys: Int[Tensor, "batch keys"]
    mask: Bool[Tensor, "batch 1 queries keys"] | None
    """``None``: prompts, whose queries are the keys; causal, or all of the prompt where the model attends so."""
    within: Bool[Tensor, "batch 1 1 keys"]
    """False at padded keys, which only queries that are not causal would see."""


@dataclass(frozen=True)
class AttentionPlan:
    """The attention calls of a sequence of groups."""

    calls: tuple[AttentionCall, ...]
    results: Int[Tensor, " length"]
    """Index of each place of the sequence in the flattened results of all calls."""


def forward_arguments(groups: Sequence[PromptGroup], device: torch.device) -> dict[str, Any]:
    """Return the forward arguments for a sequence of groups.

    The mask is a placeholder: models pass one of four dimensions on instead of building one, and ``attention`` ignores
    it.
    """
    return {"packed_groups": plan(groups, device), "attention_mask": torch.ones(1, 1, 1, 1, device=device).bool()}


def plan(groups: Sequence[PromptGroup], device: torch.device) -> AttentionPlan:
    """Divide the attention of a sequence of groups into calls. A function of the lengths alone."""
    ends = list(accumulate((group.prompt + sum(group.responses) for group in groups), initial=0))
    prompts = [_Span(start, group.prompt, ()) for start, group in zip(ends[:-1], groups, strict=True)]
    tiles = [tile for prompt, group in zip(prompts, groups, strict=True) for tile in _tiles(prompt, group.responses)]
    batches = [*_batches(prompts), *_batches(tiles)]
    results = np.empty(ends[-1], dtype=np.int64)
    calls = []
    done = 0
    for batch in batches:
        calls.append(_call(batch, device))
        width = max(span.queries for span in batch)
        for row, span in enumerate(batch):
            results[span.places] = done + row * width + np.arange(span.queries)
        done += len(batch) * width
    return AttentionPlan(tuple(calls), torch.from_numpy(results).to(device))


@dataclass(frozen=True)
class _Span:
    """Consecutive places that are attended together: a prompt, or the responses of a tile."""

    start: int
    """Place of the first prompt token."""
    prompt: int
    """Tokens of the prompt."""
    tile: tuple[int, ...]
    """Lengths of responses; empty where the prompt itself is attended."""
    before: int = 0
    """Tokens of responses between prompt and tile."""

    @property
    def queries(self) -> int:
        return sum(self.tile) if self.tile else self.prompt

    @property
    def keys(self) -> int:
        return self.prompt + sum(self.tile)

    @property
    def places(self) -> slice:
        first = self.start + (self.prompt + self.before if self.tile else 0)
        return slice(first, first + self.queries)


def _tiles(prompt: _Span, responses: Sequence[int]) -> list[_Span]:
    tiles: list[_Span] = []
    run: tuple[int, ...] = ()
    before = 0
    for length in (*responses, None):
        if sum(run) and (length is None or sum(run) + length > prompt.prompt):
            tiles.append(_Span(prompt.start, prompt.prompt, run, before))
            before += sum(run)
            run = ()
        run = (*run, length or 0)
    return tiles


def _batches(spans: Sequence[_Span]) -> list[list[_Span]]:
    """Group spans of similar size, within the padding that ``_MAX_PADDING`` allows."""
    batches: list[list[_Span]] = []
    counted = 0
    for span in sorted(spans, key=lambda span: (-span.prompt, -span.queries)):
        counted += span.queries * span.keys
        batch = [*batches[-1], span] if batches else [span]
        padded = len(batch) * max(one.queries for one in batch) * max(one.keys for one in batch)
        if batches and padded <= _MAX_PADDING * counted:
            batches[-1] = batch
        else:
            batches.append([span])
            counted = span.queries * span.keys
    return batches


def _call(batch: Sequence[_Span], device: torch.device) -> AttentionCall:
    queries, keys = (max(sizes) for sizes in zip(*((span.queries, span.keys) for span in batch), strict=True))
    query_places = np.empty((len(batch), queries), dtype=np.int64)
    key_places = np.empty((len(batch), keys), dtype=np.int64)
    within = np.zeros((len(batch), 1, 1, keys), dtype=bool)
    for row, span in enumerate(batch):
        within[row, ..., : span.keys] = True
        query_places[row] = key_places[row] = span.start
        query_places[row, : span.queries] = np.r_[span.places]
        key_places[row, : span.prompt] = np.arange(span.start, span.start + span.prompt)
        key_places[row, span.keys - sum(span.tile) : span.keys] = np.r_[span.places][: sum(span.tile)]
    mask = _mask(batch, queries, keys).to(device) if batch[0].tile else None
    at_queries, at_keys, inside = (torch.from_numpy(array).to(device) for array in (query_places, key_places, within))
    return AttentionCall(at_queries, at_keys, mask, inside)


def _mask(batch: Sequence[_Span], queries: int, keys: int) -> Bool[Tensor, "batch 1 queries keys"]:
    mask = np.zeros((len(batch), 1, queries, keys), dtype=bool)
    for row, span in enumerate(batch):
        mask[row, 0, :, : span.prompt] = True  # of padded queries too, which must see something
        for first, end in pairwise(accumulate(span.tile, initial=0)):
            own = np.tri(end - first, dtype=bool)
            mask[row, 0, first:end, span.prompt + first : span.prompt + end] = own
    return torch.from_numpy(mask)


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    value: Float[Tensor, "batch groups length width"],
    attention_mask: Tensor | None,
    *,
    packed_groups: AttentionPlan | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch length heads width"], None]:
    """Compute scaled dot-product attention, of packed groups where ``packed_groups`` is given.

    Raises:
        Invalid: the layer attends in a sliding window, which packed groups do not support.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    if options.get("sliding_window") is not None:
        raise Invalid("a layer with sliding-window attention cannot share prompts")
    causal = getattr(module, "is_causal", True)
    attended = [
        sdpa_attention_forward(
            module,
            _at(query, call.queries),
            _at(key, call.keys),
            _at(value, call.keys),
            call.mask if call.mask is not None or causal else call.within,
            **options,
        )[0].flatten(0, 1)
        for call in packed_groups.calls
    ]
    return torch.cat(attended).index_select(0, packed_groups.results)[None], None


def _at(
    states: Float[Tensor, "1 heads length width"], places: Int[Tensor, "batch n"]
) -> Float[Tensor, "batch heads n width"]:
    heads, _, width = states.shape[1:]
    return states[0].index_select(1, places.flatten()).view(heads, *places.shape, width).transpose(0, 1)


def install(decoder: Any) -> None:
    """Make ``attention`` the implementation of a language model; it is plain SDPA where no groups are packed.

    Raises:
        Invalid: the model does not attend through transformers' attention interface, or has layers of another kind,
            such as those that attend in chunks: a short trial would not show them.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    if unknown := set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise Invalid(f"layers of kind {', '.join(sorted(unknown))} cannot share prompts")
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    decoder.set_attn_implementation(ATTENTION)
    if decoder.config._attn_implementation != ATTENTION:
        raise Invalid(f"{type(decoder).__name__} does not attend through transformers' attention interface")
