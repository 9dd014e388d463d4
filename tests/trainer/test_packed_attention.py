"""Attention of packed groups against one mask over the whole sequence, and the products that it takes."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mor_trainer.model import shared_prompt
from mor_trainer.model.packed_groups import PackedGroups, PromptGroup
from mor_trainer.model.shared_prompt import LayerMask
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    blockwise_overlay,
    causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)

CPU = torch.device("cpu")
Lengths = list[tuple[int, list[int]]]


def visible(lengths: Lengths, window: int | None, blocks: Sequence[int]) -> Tensor:
    """One mask over the sequence: a token sees its prompt and its own response, as far as the window reaches, causally
    or within a block."""
    tokens = [
        (group, response, (prompt if response else 0) + index)
        for group, (prompt, rest) in enumerate(lengths)
        for response, length in enumerate((prompt, *rest))
        for index in range(length)
    ]

    def sees(a: int, b: int) -> bool:
        (group, response, place), (other, theirs, key) = tokens[a], tokens[b]
        within = window is None or place - key < window
        before = key <= place or blocks[a] == blocks[b] >= 0
        return group == other and theirs in (0, response) and within and before

    return torch.tensor([[sees(a, b) for b in range(len(tokens))] for a in range(len(tokens))])


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.lists(st.integers(0, 9), max_size=6)), min_size=1, max_size=6),
    st.none() | st.integers(1, 10),
    st.none() | st.integers(0, 1 << 16),
)
def test_groups_are_attended_as_under_one_mask(lengths: Lengths, window: int | None, seed: int | None) -> None:
    """``seed``: of blocks of prompt tokens that see each other, such as those of a picture."""
    dice = random.Random(seed)
    blocks: list[int] = []
    for prompt, responses in lengths:
        own: list[int] = []
        while len(own) < prompt:
            own += [-1 if seed is None else dice.randint(-1, 1)] * dice.randint(1, 4)
        blocks += [*own[:prompt], *[-1] * sum(responses)]
    function = causal_mask_function if window is None else sliding_window_causal_mask_function(window)
    if seed is not None:
        function = or_masks(causal_mask_function, blockwise_overlay(torch.tensor([blocks])))
        function = function if window is None else and_masks(function, sliding_window_overlay(window))
    packed = PackedGroups.of([PromptGroup(prompt, responses) for prompt, responses in lengths], CPU)
    states = torch.randn(3, 1, 2, len(blocks), 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found, _ = shared_prompt.attention(
        torch.nn.Module(), *states, LayerMask.of(packed, function), sliding_window=window
    )
    mask = visible(lengths, window, blocks)
    wanted = torch.nn.functional.scaled_dot_product_attention(*states, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(found, wanted, atol=1e-12)


def test_groups_of_one_size_take_two_calls() -> None:
    mask = LayerMask.of(PackedGroups.of([PromptGroup(20, [3] * 6)] * 5, CPU), causal_mask_function)
    assert [call.mask is None for call in mask.plan(None).calls] == [True, False]


def test_products_in_a_window_are_bounded_by_those_that_count() -> None:
    """A tile of a quarter of the window computes a quarter more than counts, and padding adds half of it at most. A
    long response is divided as a prompt is."""
    lengths: Lengths = [(500, [20] * 8), (450, [200, 3])]
    packed = PackedGroups.of([PromptGroup(prompt, responses) for prompt, responses in lengths], CPU)
    mask = LayerMask.of(packed, sliding_window_causal_mask_function(32))
    counting = int(visible(lengths, 32, [-1] * len(packed.alone)).sum())
    assert counting <= mask.plan(32).products <= 1.25 * 1.5 * counting
    assert mask.plan(32).products < 0.2 * LayerMask.of(packed, causal_mask_function).plan(None).products


def test_a_picture_that_sees_itself_adds_the_products_of_its_own_tokens() -> None:
    """The tiles of its tokens reach to its end; those of other tokens do not."""
    picture = torch.full((1, 1000), -1)
    picture[0, 100:200] = 0
    packed = PackedGroups.of([PromptGroup(1000, [])], CPU)
    causal = LayerMask.of(packed, sliding_window_causal_mask_function(64)).plan(64).products
    both = or_masks(causal_mask_function, blockwise_overlay(picture))
    found = LayerMask.of(packed, and_masks(both, sliding_window_overlay(64))).plan(64).products
    assert causal < found <= 1.5 * (causal + 100 * 200)  # padding adds half at most
