"""Muon: PyTorch's steps, apart from the rounding of bfloat16 products."""

from __future__ import annotations

import pytest
import torch
from three_domains.muon import Muon, orthogonalised


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_steps_are_those_of_pytorch(shape: tuple[int, int], dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=draw)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    optimisers = Muon([ours], **options, dtype=dtype), torch.optim.Muon([theirs], **options)
    for _ in range(5):
        grad = torch.randn(shape, generator=draw)
        for parameter, optimiser in zip((ours, theirs), optimisers, strict=True):
            parameter.grad = grad.clone()
            optimiser.step()
    moved = theirs - start
    assert ours.dtype == torch.float32
    assert (ours - theirs).norm() < 0.02 * moved.norm()


@pytest.mark.parametrize("shape", [(8, 24), (24, 8)])
def test_singular_values_are_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 1e3
    values = torch.linalg.svdvals(orthogonalised(matrix))
    assert 0.6 < values.min() <= values.max() < 1.3
