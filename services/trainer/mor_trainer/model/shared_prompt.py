"""Attention over groups that are packed into one sequence, each prompt once: for any model of transformers' attention
interface.

A group lies in the sequence as its prompt and, after it, its responses. The prompt is attended causally; a response
sees the prompt and itself. Queries of responses are attended tile by tile: a tile is a run of whole responses no longer
than the prompt (or one response), so that masked products are never more than those that count, and short responses,
the common case, take one call for a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from mor_core.errors import Invalid
from torch import Tensor, nn

ATTENTION = "mor_shared_prompt"
"""Name of the implementation in transformers' ``AttentionInterface``."""


def arguments(groups: Sequence[PackedGroup], device: torch.device) -> dict[str, Any]:
    """Forward arguments of a sequence of packed groups. The mask is for show: models hand one of four dimensions on as
    it is instead of building one, and ``attention`` does not look at it.
    """
    return {"packed_groups": groups, "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)}


@dataclass(frozen=True)
class Tile:
    """Response tokens ``[start, end)`` of the sequence, attended in one call."""

    start: int
    end: int
    mask: Bool[Tensor, "1 1 queries keys"]
    """Keys: the prompt's, then the tile's."""


@dataclass(frozen=True)
class PackedGroup:
    """Places of a group in the sequence; the tiles follow the prompt ``[start, end)`` without a gap."""

    start: int
    end: int
    tiles: tuple[Tile, ...]


def packed_group(start: int, prompt: int, responses: Sequence[int], device: torch.device) -> PackedGroup:
    """A group whose prompt of ``prompt`` tokens begins at ``start``, with the numbers of tokens of its responses."""
    end = place = start + prompt
    tiles: list[Tile] = []
    run: list[int] = []

    def close() -> None:
        nonlocal place, run
        if size := sum(run):
            tiles.append(Tile(place, place + size, _mask(prompt, run).to(device)))
            place += size
        run = []

    for length in responses:
        if run and sum(run) + length > prompt:
            close()
        run.append(length)
    close()
    return PackedGroup(start, end, tuple(tiles))


def _mask(prompt: int, responses: Sequence[int]) -> Bool[Tensor, "1 1 queries keys"]:
    response = torch.repeat_interleave(torch.arange(len(responses)), torch.tensor(responses))
    own = (response[:, None] == response[None, :]).tril()
    return torch.cat([own.new_ones(len(own), prompt), own], 1)[None, None]


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads length width"],
    key: Float[Tensor, "batch groups length width"],
    value: Float[Tensor, "batch groups length width"],
    attention_mask: Tensor | None,
    *,
    packed_groups: Sequence[PackedGroup] | None = None,
    **options: Any,
) -> tuple[Float[Tensor, "batch length heads width"], None]:
    """Scaled dot-product attention, of packed groups where ``packed_groups`` is given.

    Raises:
        Invalid: the layer attends in a window, which this does not do.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if packed_groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0], None
    if options.get("sliding_window") is not None:
        raise Invalid("a layer with sliding-window attention cannot share prompts")
    attended: list[Tensor] = []

    def attend(start: int, end: int, keys: Tensor, values: Tensor, mask: Tensor | None) -> None:
        attended.append(sdpa_attention_forward(module, query[:, :, start:end], keys, values, mask, **options)[0])

    for group in packed_groups:
        prompt = slice(group.start, group.end)
        attend(group.start, group.end, key[:, :, prompt], value[:, :, prompt], None)
        for tile in group.tiles:
            keys, values = (_seen(states, group, tile) for states in (key, value))
            attend(tile.start, tile.end, keys, values, tile.mask)
    return torch.cat(attended, 1), None


def _seen(states: Tensor, group: PackedGroup, tile: Tile) -> Tensor:
    if tile.start == group.end:
        return states[:, :, group.start : tile.end]
    return torch.cat([states[:, :, group.start : group.end], states[:, :, tile.start : tile.end]], 2)


def use(decoder: Any) -> None:
    """Let a language model attend with ``attention``, which is plain SDPA where no groups are packed.

    Raises:
        Invalid: it does not attend through transformers' attention interface.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    decoder.set_attn_implementation(ATTENTION)
    if decoder.config._attn_implementation != ATTENTION:
        raise Invalid(f"{type(decoder).__name__} does not attend through transformers' attention interface")
