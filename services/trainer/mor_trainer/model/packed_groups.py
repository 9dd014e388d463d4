"""Groups that are packed into one sequence, each prompt once: a prompt and, after it, its responses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Mask of a model: of indices of batch, head, query and key, whether the query sees the key."""


@dataclass(frozen=True)
class PromptGroup:
    """Numbers of tokens of a prompt and of the responses that follow it in the sequence."""

    prompt: int
    responses: Sequence[int]


@dataclass(frozen=True, eq=False)
class PackedGroups:
    """Groups of a packed sequence."""

    groups: tuple[PromptGroup, ...]
    responses: Int[Tensor, " length"]
    """Number of the response that each place belongs to, -1 in prompts."""
    alone: Int[Tensor, " length"]
    """Place that each token would have if its response were the first after its prompt. All tokens of responses are
    alike to a mask function, so it may be asked for these places."""

    @classmethod
    def of(cls, groups: Sequence[PromptGroup], device: torch.device) -> PackedGroups:
        """Lay out a sequence of groups. A function of the lengths alone."""
        responses: list[Any] = [np.empty(0, dtype=np.int64)]
        alone: list[Any] = [np.empty(0, dtype=np.int64)]
        start = number = 0
        for group in groups:
            responses.append(np.full(group.prompt, -1))
            alone.append(start + np.arange(group.prompt))
            for length in group.responses:
                responses.append(np.full(length, number))
                alone.append(start + group.prompt + np.arange(length))
                number += 1
            start += group.prompt + sum(group.responses)
        at_responses, at_alone = (torch.from_numpy(np.concatenate(parts)).to(device) for parts in (responses, alone))
        return cls(tuple(groups), at_responses, at_alone)

    def seen(
        self, mask: MaskFunction, queries: Int[Tensor, "batch queries"], keys: Int[Tensor, "batch keys"]
    ) -> Bool[Tensor, "batch queries keys"]:
        """Return which keys each query sees; all are places of one group, prompts with prompts."""
        asked, shown = self.responses[queries][:, :, None], self.responses[keys][:, None]
        none = queries.new_zeros(())
        alone = mask(none, none, self.alone[queries][:, :, None], self.alone[keys][:, None])
        return alone & ((shown < 0) | (shown == asked))


_packed: ContextVar[PackedGroups | None] = ContextVar("packed_groups", default=None)
"""The groups that the model is called with, for the masks that it makes on its way."""


def current() -> PackedGroups | None:
    """Return the groups that the model is called with now."""
    return _packed.get()


@contextlib.contextmanager
def packed(groups: PackedGroups | None) -> Iterator[None]:
    """Let the models that are called inside attend to packed groups; as usual where ``groups`` is ``None``."""
    token = _packed.set(groups)
    try:
        yield
    finally:
        _packed.reset(token)
