"""Interface of reward models: examples to score, scorers, trainable backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import Float
from mor_core import images as safe_images
from mor_core.byte_cache import ByteBoundCache
from mor_core.errors import Invalid, TooLarge
from mor_core.wire import Documented, Message
from PIL import Image
from torch import Tensor, nn

from mor_reward.metrics import count_lookups

Precision = Literal["auto", "float32", "bfloat16"]


_BFLOAT16 = ("amx_bf16", "avx512_bf16")
"""Instructions of CPUs that multiply bfloat16 matrices: two to three times as fast as float32."""
_CHARACTERS_A_TOKEN = 32
"""Most characters of a text for each token that a model reads; common words have four to ten."""


class PictureRefused(Invalid):
    """Picture that cannot be decoded; items that show it are unscorable."""


@dataclass(frozen=True)
class Picture:
    """Encoded picture and its hash."""

    sha256: str
    content: bytes = field(repr=False, compare=False)

    def decode(self) -> Image.Image:
        """Decode the picture to RGB.

        Raises:
            PictureRefused: it cannot be decoded, see ``mor_core.images.decode``.
        """
        try:
            return safe_images.decode(self.content)
        except (Invalid, TooLarge) as error:
            raise PictureRefused(f"picture {self.sha256[:12]}: {error}") from error


@dataclass(frozen=True)
class Example:
    """Response to score in its context."""

    messages: tuple[Message, ...]
    pictures: tuple[Picture, ...]
    """In the order of ``messages``, with repeats."""
    response: str
    objective: str | None = field(default=None, compare=False)
    """Objective of the request in words, which trained models do not read."""

    @cached_property
    def context(self) -> Hashable:
        """Key that is equal for examples which differ only in the response."""
        return self.messages

    @cached_property
    def text_key(self) -> Hashable:
        """Key that is equal for examples which differ only in their pictures."""
        return tuple((message.role, message.text) for message in self.messages), self.response


class Scorer(Protocol):
    """Function from a batch of (messages, pictures, response) to scores."""

    uses_pictures: bool
    """``False`` if the scorer ignores ``Example.pictures``."""

    def unscorable_reason(self, example: Example) -> str | None:
        """Return the reason why ``example`` cannot be scored, or ``None`` if it can."""
        ...

    def score(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        """Score each example, independently of the rest of the batch."""
        ...


class BackboneConfig(Documented):
    """Base of the typed configurations of trainable backbones."""


class Backbone(nn.Module, ABC):
    """Trainable reward model: raw scores with gradients, export of its configuration files.

    A subclass is built by ``Subclass(config, root, pretrained)``. With ``pretrained`` it loads the checkpoints that the
    configuration names; otherwise it builds their architectures, without weights, from the files that ``export`` wrote.
    Paths are relative to ``root``.
    """

    uses_pictures = True
    features: ByteBoundCache[Any]

    def __init__(self) -> None:
        super().__init__()
        self.use_cache(256 << 20)  # the default of MOR_FEATURE_CACHE_BYTES

    def use_cache(self, max_bytes: int) -> None:
        """Replace the cache of frozen encoder features by an empty one of ``max_bytes``; 0 caches nothing."""
        self.features = ByteBoundCache(max_bytes, lambda feature: int(feature.nbytes), count_lookups("features"))

    @abstractmethod
    def unscorable_reason(self, example: Example) -> str | None: ...

    @abstractmethod
    def forward(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]: ...

    def merge_adapters(self) -> None:
        """Merge trained adapters into the weights, once, after training. No effect on a model without adapters."""

    @abstractmethod
    def linear_part(self) -> list[Tensor]:
        """Return parameters in which, all together, the score is linear apart from dropout."""

    def precompute_features(self, examples: Sequence[Example]) -> Iterator[int]:
        """Compute the frozen features of ``examples`` and cache them, in a fixed order.

        Yields the bytes that each step added: the caller shows progress, and stops when the cache overflows.
        """
        yield from ()

    @abstractmethod
    def export(self, folder: Path) -> BackboneConfig:
        """Write configurations, tokenizer and processor under ``folder``; return the configuration that loads them."""

    def score(self, batch: Sequence[Example]) -> Float[Tensor, " batch"]:
        with torch.no_grad():
            scores: Tensor = self(batch)
        return scores


def too_long_to_tokenize(subject: str, characters: int, max_tokens: int) -> str | None:
    """Return the reason why a text is not worth counting its tokens: so long a text has too many of them."""
    if characters <= _CHARACTERS_A_TOKEN * max_tokens:
        return None
    return f"{subject} {characters} characters; this model reads at most {max_tokens} tokens"


def resolve_precision(precision: Precision) -> torch.dtype:
    """Return the type for ``precision``; ``auto`` is bfloat16 if the hardware multiplies it, otherwise float32."""
    if precision == "auto":
        able = torch.cpu.get_capabilities()
        native = torch.cuda.is_available() or any(able.get(name, False) for name in _BFLOAT16)
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32
