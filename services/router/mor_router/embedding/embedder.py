"""Embedder: a text and an image encoder, cached by hash, that run outside the event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float
from mor_core.tasks import in_thread
from mor_core.wire import Message, image_hashes
from numpy import ndarray

from mor_router.embedding.hashed_features import ColoursAndEdges, HashedWords


class TextEncoder(Protocol):
    name: str
    size: int

    def __call__(self, text: str) -> Float[ndarray, " features"]: ...


class ImageEncoder(Protocol):
    name: str
    size: int

    def __call__(self, content: bytes) -> Float[ndarray, " features"]: ...


@dataclass(frozen=True)
class GateInput:
    """Input of the gate: the messages of a group without the responses."""

    messages: tuple[Message, ...]
    images: Mapping[str, bytes] = field(repr=False)
    """Encoded bytes by hash, at least those that ``messages`` name."""


class _Cache:
    """Cache of the ``bound`` vectors used last, by key."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._vectors: OrderedDict[str, Float[ndarray, " features"]] = OrderedDict()

    def get(self, key: str, compute: Callable[[], Float[ndarray, " features"]]) -> Float[ndarray, " features"]:
        if key not in self._vectors:
            self._vectors[key] = compute()
            if len(self._vectors) > self._bound:
                self._vectors.popitem(last=False)
        self._vectors.move_to_end(key)
        return self._vectors[key]


class Embedder:
    """e(x) = (text, mean of images), each of length 1 or all zero where the input has none; e(o) = text."""

    def __init__(self, text: TextEncoder, image: ImageEncoder, cache: int) -> None:
        self.name = f"{text.name}+{image.name}"
        """Identity of both encoders: a gate is used only with the embedder that it was fitted with."""
        self.size = text.size + image.size
        """Number of features of an input."""
        self._text = text
        self._image = image
        self._texts = _Cache(cache)
        self._images = _Cache(cache)
        self._lock = asyncio.Lock()

    async def inputs(self, inputs: Sequence[GateInput]) -> Float[ndarray, "inputs features"]:
        """Return e(x) of each input.

        Raises:
            Invalid: an image cannot be decoded.
        """
        async with self._lock:  # the caches are not safe for two threads at a time
            return await in_thread(lambda: np.stack([self._input(x) for x in inputs]))

    async def text(self, text: str) -> Float[ndarray, " features"]:
        """Return e(o) of an objective's text."""
        async with self._lock:
            return await in_thread(self._text_vector, text)

    def _input(self, x: GateInput) -> Float[ndarray, " features"]:
        text = self._text_vector("\n".join(message.text for message in x.messages))
        pictures = [
            self._images.get(digest, lambda digest=digest: self._image(x.images[digest]))  # type: ignore[misc]
            for digest in image_hashes(x.messages)
        ]
        image = np.mean(pictures, axis=0) if pictures else np.zeros(self._image.size)
        return np.concatenate([text, image])

    def _text_vector(self, text: str) -> Float[ndarray, " features"]:
        return self._texts.get(hashlib.sha256(text.encode()).hexdigest(), lambda: self._text(text))


def build_embedder(text_model: str | None, image_model: str | None, cache: int) -> Embedder:
    """Load the models that are named, with hashed features in place of a model that is not.

    Raises:
        Invalid: a model cannot be loaded.
    """
    text: TextEncoder = HashedWords()
    image: ImageEncoder = ColoursAndEdges()
    if text_model or image_model:
        from mor_router.embedding.models import ImageModel, TextModel

        text = TextModel(text_model) if text_model else text
        image = ImageModel(image_model) if image_model else image
    return Embedder(text, image, cache)
