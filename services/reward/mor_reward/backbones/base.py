"""The seam between a reward model and everything around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from mor_core import images as guarded
from mor_core.wire import Message
from PIL import Image
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from mor_reward.caches import ByteBoundCache

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Picture:
    """An encoded picture and its identity."""

    sha256: str
    content: bytes = field(repr=False, compare=False)

    def decode(self) -> Image.Image:
        """RGB.

        Raises:
            Invalid, TooLarge: see ``mor_core.images.decode``.
        """
        return guarded.decode(self.content)


@dataclass(frozen=True)
class Example:
    """One response to score in its context."""

    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    """In the order in which ``messages`` show them; repeats kept."""
    response: str

    @cached_property
    def context(self) -> Hashable:
        """Equal for examples that differ in nothing but the response."""
        return self.messages

    @cached_property
    def said(self) -> Hashable:
        """Equal for examples that differ in nothing but their pictures."""
        return tuple((message.role, message.text) for message in self.messages), self.response


class Scorer(Protocol):
    """Scores a batch of (messages, pictures, response)."""

    sees_pictures: bool
    """Whether ``Example.pictures`` is looked at."""

    def refuse(self, example: Example) -> str | None:
        """Why ``example`` cannot be scored, as a sentence; ``None`` when it can."""
        ...

    def score(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        """A score for each example, whatever else is in the batch."""
        ...


class BackboneConfig(BaseModel):
    """Base of the typed configurations of trainable backbones."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Backbone(nn.Module, ABC):
    """A trainable reward model: raw scores with gradients, and what it needs to be saved and loaded again.

    A subclass is built by ``Subclass(config, root, pretrained)``: with ``pretrained`` it loads the checkpoints that the
    configuration names, else it builds their architectures from the files that ``export`` wrote, without weights; paths
    are relative to ``root``.
    """

    sees_pictures = True
    features: ByteBoundCache[Any]

    def __init__(self) -> None:
        super().__init__()
        self.use_cache(256 << 20)

    def use_cache(self, max_bytes: int) -> None:
        """Keep features of frozen towers in a new cache of ``max_bytes``; 0 keeps none."""
        self.features = ByteBoundCache("features", max_bytes, lambda feature: feature.nbytes)

    @abstractmethod
    def refuse(self, example: Example) -> str | None: ...

    @abstractmethod
    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]: ...

    def fold(self) -> None:
        """Fold trained adapters into the weights, once, after training; nothing for a model without."""

    def feature_jobs(self, examples: Sequence[Example]) -> Iterator[int]:
        """Compute the frozen features of ``examples`` into the cache, in a fixed order.

        Yields the bytes that each step added, so that the caller can show progress and stop when they do not fit.
        """
        yield from ()

    @abstractmethod
    def export(self, folder: Path) -> BackboneConfig:
        """Write configurations, tokenizer and processor under ``folder``; the configuration to load them from there."""

    def score(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        with torch.no_grad():
            scores: Tensor = self(batch)
        return scores


def resolve_precision(precision: Precision) -> torch.dtype:
    """The type that ``precision`` means here: ``auto`` is bfloat16 where the hardware multiplies it, else float32."""
    if precision == "auto":
        native = torch.cuda.is_available() or bool(torch.cpu.get_capabilities().get("amx_bf16", False))
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
