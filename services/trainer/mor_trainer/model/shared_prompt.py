"""Attention over groups that are packed into one sequence, each prompt once.

For any model that attends through transformers' attention and mask interfaces. A group lies in the sequence as its
prompt and, after it, its responses. A response sees itself and its prompt, both as its model's own mask of the layer
says: causal, in a sliding window, or with image tokens that see each other. The mask function of the model is asked
for the places that prompt and response would have alone.

Queries are attended tile by tile. A tile of responses is a run of whole responses no longer than what they see of the
prompt, or one response. So masked products are never more than those that count, and short responses, the common case,
are one tile. In a sliding window, tiles are a part of the window long, and their keys are those that one of their
queries sees.

Tiles of similar size take one call together: on a GPU the many small calls of single groups would cost more than their
products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from mor_core.errors import Invalid
from torch import Tensor, nn

from mor_trainer.model import forked_states
from mor_trainer.model.packed_groups import MaskFunction, PackedGroups, PromptGroup, current
from mor_trainer.model.padded_batches import similar

ATTENTION = "mor_shared_prompt"
"""Name of the implementation in transformers' ``AttentionInterface``."""

_KINDS = {"full_attention", "sliding_attention", *forked_states.KINDS}
"""Kinds of layers that share prompts."""
_TILES = 4
"""Tiles in a window. More of them compute fewer products that do not count, and copy a key more often."""


@dataclass(frozen=True)
class AttentionCall:
    """Places in the sequence that are attended at once, padded on the right with places whose results are not used."""

    queries: Int[Tensor, "batch queries"]
    keys: Int[Tensor, "batch keys"]
    mask: Bool[Tensor, "batch 1 queries keys"] | None
    """``None``: causal; the queries are the keys."""


@dataclass(frozen=True)
class AttentionPlan:
    """The attention calls of a sequence of groups."""

    calls: tuple[AttentionCall, ...]
    results: Int[Tensor, " length"]
    """Index of each place of the sequence in the flattened results of all calls."""

    @property
    def products(self) -> int:
        """Number of pairs of a query and a key that are multiplied, a head."""
        return sum(call.queries.numel() * call.keys.shape[1] for call in self.calls)


class LayerMask(Tensor):
    """The mask of some layers over packed groups: a placeholder of four dimensions, which models pass on as it is."""

    packed: PackedGroups
    function: MaskFunction
    _plans: dict[int | None, AttentionPlan]

    @classmethod
    def of(cls, packed: PackedGroups, function: MaskFunction) -> LayerMask:
        mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packed.alone.device).as_subclass(cls)
        mask.packed, mask.function, mask._plans = packed, function, {}
        return mask

    def plan(self, window: int | None) -> AttentionPlan:
        """Divide the attention into calls. ``window``: tokens that a query sees, itself included; ``None`` of all."""
        if window not in self._plans:
            self._plans[window] = self._divided(window)
        return self._plans[window]

    def _divided(self, window: int | None) -> AttentionPlan:
        from transformers.masking_utils import causal_mask_function

        ends = list(accumulate((group.prompt + sum(group.responses) for group in self.packed.groups), initial=0))
        starts = list(zip(ends, self.packed.groups, strict=False))
        size = None if window is None else max(1, window // _TILES)
        prompts = [tile for start, group in starts for tile in self._prompt_tiles(start, group.prompt, size)]
        responses = [tile for start, group in starts for tile in self._response_tiles(start, group, size)]
        plain = window is None and self.function is causal_mask_function
        batches = [*((batch, plain) for batch in _batches(prompts)), *((batch, False) for batch in _batches(responses))]
        results = np.empty(ends[-1], dtype=np.int64)
        calls = []
        done = 0
        for batch, causal in batches:
            calls.append(self._call(batch, causal))
            width = max(tile.queries for tile in batch)
            for row, tile in enumerate(batch):
                results[tile.first : tile.end] = done + row * width + np.arange(tile.queries)
            done += len(batch) * width
        return AttentionPlan(tuple(calls), torch.from_numpy(results).to(self.packed.alone.device))

    def _prompt_tiles(self, start: int, prompt: int, size: int | None) -> list[_Tile]:
        """Divide a prompt into tiles of ``size`` tokens, in a window; else it is one."""
        places = range(start, start + prompt)
        if size is None:
            return [_Tile(places.start, places.stop, (places,))]
        return [self._cut(first, min(first + size, places.stop), places) for first in places[::size]]

    def _response_tiles(self, start: int, group: PromptGroup, size: int | None) -> list[_Tile]:
        prompt = range(start, start + group.prompt)
        longest = group.prompt if size is None else min(group.prompt, size)
        tiles: list[_Tile] = []
        first = end = prompt.stop
        for length in (*group.responses, None):
            if end > first and (length is None or end - first + length > longest):
                run = range(first, end)
                if size is None:
                    tiles.append(_Tile(first, end, (prompt, run)))
                else:
                    tiles += [self._cut(part, min(part + size, end), prompt, run) for part in run[::size]]
                first = end
            end += length or 0
        return tiles

    def _cut(self, first: int, end: int, *keys: range) -> _Tile:
        """Make a tile without the keys before the first and after the last that one of its queries sees."""
        device = self.packed.alone.device
        queries = torch.arange(first, end, device=device)[None]
        kept = []
        for part in keys:
            places = torch.arange(part.start, part.stop, device=device)[None]
            seen = self.packed.seen(self.function, queries, places).any(1).nonzero()[:, 1].tolist()
            kept.append(part[seen[0] : seen[-1] + 1] if seen else range(0))
        return _Tile(first, end, tuple(kept))

    def _call(self, batch: Sequence[_Tile], causal: bool) -> AttentionCall:
        queries = _padded([np.arange(tile.first, tile.end) for tile in batch])
        keys = _padded([np.concatenate([np.arange(part.start, part.stop) for part in tile.keys]) for tile in batch])
        within = np.arange(keys.shape[1]) < np.array([[tile.count] for tile in batch])
        device = self.packed.alone.device
        at_queries, at_keys, inside = (torch.from_numpy(array).to(device) for array in (queries, keys, within))
        if causal:
            return AttentionCall(at_queries, at_keys, None)
        mask = self.packed.seen(self.function, at_queries, at_keys) & inside[:, None]
        return AttentionCall(at_queries, at_keys, mask[:, None])


@dataclass(frozen=True)
class _Tile:
    """Consecutive queries of a group, and the ranges of keys that they are multiplied with."""

    first: int
    end: int
    keys: tuple[range, ...]

    @property
    def queries(self) -> int:
        return self.end - self.first

    @property
    def count(self) -> int:
        return sum(map(len, self.keys))


def _batches(tiles: Sequence[_Tile]) -> list[list[_Tile]]:
    return [[tiles[index] for index in batch] for batch in similar([(tile.count, tile.queries) for tile in tiles])]


def _padded(rows: Sequence[Any]) -> Any:
    """Stack rows of places, each continued with its last one: a padded query sees what a true one does."""
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row)), mode="edge") for row in rows])


def _layer_mask(*, mask_function: MaskFunction, **options: Any) -> Any:
    """Make the mask of a kind of layer, for transformers' ``AttentionMaskInterface``."""
    from transformers.masking_utils import sdpa_mask

    if (groups := current()) is None:
        return sdpa_mask(mask_function=mask_function, **options)
    return LayerMask.of(groups, mask_function)


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    value: Float[Tensor, "batch groups length width"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "batch length heads width"], None]:
    """Compute scaled dot-product attention, of packed groups where the mask is one of them."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if not isinstance(attention_mask, LayerMask):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    plan = attention_mask.plan(options.get("sliding_window"))
    options["is_causal"] = True  # where a call has no mask
    attended = [
        sdpa_attention_forward(
            module, _at(query, call.queries), _at(key, call.keys), _at(value, call.keys), call.mask, **options
        )[0].flatten(0, 1)
        for call in plan.calls
    ]
    return torch.cat(attended).index_select(0, plan.results)[None], None


def _at(
    states: Float[Tensor, "1 heads length width"], places: Int[Tensor, "batch n"]
) -> Float[Tensor, "batch heads n width"]:
    heads, _, width = states.shape[1:]
    return states[0].index_select(1, places.flatten()).view(heads, *places.shape, width).transpose(0, 1)


def longest_window(decoder: Any) -> int:
    """Return the tokens of the sliding window that a language model attends in; 0 without one that can be exceeded."""
    window = getattr(decoder.config, "sliding_window", None) or 0
    return window if window < getattr(decoder.config, "max_position_embeddings", window + 1) else 0


def install(decoder: Any) -> None:
    """Let a language model attend by ``attention``, and fork states; it computes as before where no groups are packed.

    Raises:
        Invalid: the model does not attend through transformers' attention interface, or has layers of another kind,
            such as those that attend in chunks: a short trial would not show them.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if unknown := set(getattr(decoder.config, "layer_types", None) or ()) - _KINDS:
        raise Invalid(f"layers of kind {', '.join(sorted(unknown))} cannot share prompts")
    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, _layer_mask)
    decoder.set_attn_implementation(ATTENTION)
    if decoder.config._attn_implementation != ATTENTION:
        raise Invalid(f"{type(decoder).__name__} does not attend through transformers' attention interface")
    forked_states.install(decoder)
