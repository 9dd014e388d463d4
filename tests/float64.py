"""Models that compute in float64 throughout: the rounding of single parts would hide the precision of the others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers.integrations import moe


@contextlib.contextmanager
def all_in_float64() -> Iterator[None]:
    """Give float64 where models ask for float32: in norms, rotary embeddings, routers and states.

    Experts are multiplied one by one, as torch has no grouped product in float64.
    """
    convert, softmax = torch.Tensor.to, torch.nn.functional.softmax

    def to(tensor: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        arguments = tuple(torch.float64 if value is torch.float32 else value for value in arguments)
        options = {name: torch.float64 if value is torch.float32 else value for name, value in options.items()}
        return convert(tensor, *arguments, **options)

    def exact_softmax(tensor: torch.Tensor, *arguments: Any, dtype: torch.dtype | None = None, **options: Any) -> Any:
        dtype = torch.float64 if dtype is torch.float32 else dtype
        return softmax(tensor, *arguments, dtype=dtype, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "softmax", exact_softmax)
        patch.setattr(torch.Tensor, "to", to)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(moe, "_can_use_grouped_mm", lambda *_: False)
        yield
