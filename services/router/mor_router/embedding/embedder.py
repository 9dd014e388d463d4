"""Embedder: a text and an image encoder, cached by hash, that run outside the event loop.

Live groups have a thread of their own, and everything else shares another: callers of the API in turns, each for one
short piece of work at a time. A piece is bounded, because texts are cut before they are encoded and images have a
largest size. Work whose caller has gone is not begun.
"""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import partial, reduce
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from mor_core.fair_turns import FairTurns
from mor_core.tasks import on_executor
from mor_core.wire import Message, image_hashes
from numpy import ndarray

from mor_router.embedding.hashed_features import ColoursAndEdges, HashedWords


class OwnWork(Enum):
    """Senders that are no callers. No name of a token is equal to one."""

    LIVE = auto()
    """The groups of runs."""
    HONEYPOTS = auto()
    """The honeypots that stand beside the groups of runs."""
    BACKGROUND = auto()
    """Fits and whatever else no caller waits for."""


Sender = OwnWork | str
"""``OwnWork``, or the name of a caller."""
LIVE = OwnWork.LIVE
HONEYPOTS = OwnWork.HONEYPOTS

_TURN_S = 0.02
"""Seconds after which a turn takes up no further text or image: many small ones share a turn, a large one is alone."""

_sender: ContextVar[Sender] = ContextVar("embedding_sender", default=OwnWork.BACKGROUND)

Compute = Callable[[], Float[ndarray, " features"]]


@contextmanager
def embedding_for(sender: Sender) -> Iterator[None]:
    """Have embeddings in the body computed in the turns of ``sender``."""
    before = _sender.set(sender)
    try:
        yield
    finally:
        _sender.reset(before)


class TextEncoder(Protocol):
    name: str
    size: int
    most_characters: int
    """Longest text that is encoded; the rest of a longer one has no effect."""

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


class _Key(NamedTuple):
    """Identity of a text or an image."""

    kind: Literal["text", "image"]
    digest: str


class _Cache:
    """Cache of the ``bound`` vectors used last, by key."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self._vectors: OrderedDict[str, Float[ndarray, " features"]] = OrderedDict()

    def get(self, key: str) -> Float[ndarray, " features"] | None:
        vector = self._vectors.get(key)
        if vector is not None:
            self._vectors.move_to_end(key)
        return vector

    def put(self, key: str, vector: Float[ndarray, " features"]) -> None:
        self._vectors[key] = vector
        self._vectors.move_to_end(key)
        if len(self._vectors) > self._bound:
            self._vectors.popitem(last=False)


class _Lane:
    """Thread, and the turns of those who share it."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"embedding-{name}")
        self._turns = FairTurns()

    async def compute(self, work: Mapping[_Key, Compute], sender: Sender) -> dict[_Key, Float[ndarray, " features"]]:
        """Compute each value, in as many turns as that takes."""
        done: dict[_Key, Float[ndarray, " features"]] = {}
        missing = work
        while missing:
            await self._turns.take(sender)
            try:
                done |= await on_executor(self._thread, partial(_one_turn, missing))
            finally:
                self._turns.pass_on()
            missing = {key: compute for key, compute in work.items() if key not in done}
        return done


def _one_turn(work: Mapping[_Key, Compute]) -> dict[_Key, Float[ndarray, " features"]]:
    until = time.monotonic() + _TURN_S
    done: dict[_Key, Float[ndarray, " features"]] = {}
    for key, compute in work.items():
        try:
            done[key] = compute()
        except StopIteration as error:  # no future takes it
            raise RuntimeError(f"{compute!r} raised StopIteration") from error
        if time.monotonic() > until:
            break
    return done


class Embedder:
    """e(x) = (text, mean of images), each of length 1 or all zero where the input has none; e(o) = text."""

    def __init__(self, text: TextEncoder, image: ImageEncoder, cache: int) -> None:
        self.name = f"{text.name}+{image.name}"
        """Identity of both encoders: a gate is used only with the embedder that it was fitted with."""
        self.size = text.size + image.size
        """Number of features of an input."""
        self._text = text
        self._image = image
        self._caches = {"text": _Cache(cache), "image": _Cache(cache)}
        self._live, self._others = _Lane("live"), _Lane("others")

    async def inputs(self, inputs: Sequence[GateInput]) -> Float[ndarray, "inputs features"]:
        """Return e(x) of each input.

        Raises:
            Invalid: an image cannot be decoded.
        """
        texts = [self._cut("\n".join([message.text for message in x.messages])) for x in inputs]
        words = [_text_key(text) for text in texts]
        shown = [[_Key("image", digest) for digest in image_hashes(x.messages)] for x in inputs]
        work: dict[_Key, Compute] = {key: partial(self._text, text) for key, text in zip(words, texts, strict=True)}
        for x, pictures in zip(inputs, shown, strict=True):
            work |= {picture: partial(self._image, x.images[picture.digest]) for picture in pictures}
        found = await self._vectors(work)
        return np.stack(
            [
                self._input(found[text], [found[key] for key in pictures])
                for text, pictures in zip(words, shown, strict=True)
            ]
        )

    async def text(self, text: str) -> Float[ndarray, " features"]:
        """Return e(o) of an objective's text."""
        text = self._cut(text)
        key = _text_key(text)
        return (await self._vectors({key: partial(self._text, text)}))[key]

    def _cut(self, text: str) -> str:
        return text[: self._text.most_characters]

    async def _vectors(self, work: Mapping[_Key, Compute]) -> dict[_Key, Float[ndarray, " features"]]:
        found = {key: vector for key in work if (vector := self._caches[key.kind].get(key.digest)) is not None}
        missing = {key: compute for key, compute in work.items() if key not in found}
        if missing:
            sender = _sender.get()
            lane = self._live if sender is LIVE else self._others
            found |= await lane.compute(missing, sender)
            for key in missing:
                self._caches[key.kind].put(key.digest, found[key])
        return found

    def _input(
        self, text: Float[ndarray, " features"], pictures: Sequence[Float[ndarray, " features"]]
    ) -> Float[ndarray, " features"]:
        image = reduce(np.add, pictures) / len(pictures) if pictures else np.zeros(self._image.size)
        return np.concatenate([text, image])


def _text_key(text: str) -> _Key:
    return _Key("text", hashlib.sha256(text.encode()).hexdigest())


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
