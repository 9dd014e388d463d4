"""Text and image encoder side by side, cached by hash and kept off the event loop."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from jaxtyping import Float
from mor_core.wire import Message, image_hashes
from numpy import ndarray

from mor_router.embedding.features import ColoursAndEdges, HashedWords


class TextEncoder(Protocol):
    name: str
    size: int

    def __call__(self, text: str) -> Float[ndarray, " features"]: ...


class ImageEncoder(Protocol):
    name: str
    size: int

    def __call__(self, content: bytes) -> Float[ndarray, " features"]: ...


@dataclass(frozen=True)
class Input:
    """What a client is asked about, responses apart."""

    messages: tuple[Message, ...]
    images: Mapping[str, bytes] = field(repr=False)
    """Encoded bytes by hash, at least those that ``messages`` name."""


class _Cache:
    """The last ``bound`` vectors by key."""

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
        """Fits and serving must agree on it."""
        self._text = text
        self._image = image
        self._texts = _Cache(cache)
        self._images = _Cache(cache)
        self._lock = asyncio.Lock()

    async def inputs(self, inputs: Sequence[Input]) -> Float[ndarray, "inputs features"]:
        """e(x) of each input.

        Raises:
            Invalid: an image cannot be decoded.
        """
        async with self._lock:  # the caches are not for two threads at a time
            return await asyncio.to_thread(lambda: np.stack([self._input(x) for x in inputs]))

    async def text(self, text: str) -> Float[ndarray, " features"]:
        """e(o)."""
        async with self._lock:
            return await asyncio.to_thread(self._text_vector, text)

    def _input(self, x: Input) -> Float[ndarray, " features"]:
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
    """The models that are named; the features that need no model in place of those that are not.

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
