"""The seam between the service and what samples: two backends, one protocol."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mor_core.errors import MorError, Unavailable
from PIL import Image

from mor_rollout.weights.pull import PreparedWeights


class EngineError(MorError):
    """The engine failed. Sampling may be tried again unless ``Engine.failure`` says that the engine is gone."""


class ImageMismatch(MorError):
    """The engine did not get the image tokens or pixels that the processor call made."""


class SwapFailed(EngineError):
    """The engine does not compute with the weights that it was given."""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the one processor call made it, in the engine's own form beside."""

    token_ids: tuple[int, ...]
    image_tokens: int
    """Placeholder tokens among them."""
    pixels: str | None
    """``mor_core.pixel_hash.pixel_sha256`` of the processed pixel values."""
    engine_input: Any = field(repr=False)
    """What the engine that encoded it takes."""


@dataclass(frozen=True)
class Shown:
    """A prompt before the processor call: its text in the chat template, its messages' images in order."""

    messages: Any
    images: dict[str, Image.Image]


@dataclass(frozen=True)
class SampleParams:
    """How to draw responses, see ``mor_core.sampling``."""

    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class Span:
    """Tokens of a response that one version sampled."""

    version: int | None
    """``None``: the base checkpoint."""
    first: int
    """Index of the first of them; they end where the next span begins."""


@dataclass(frozen=True)
class Sampled:
    """One response: ids as sampled, the stop token included, and their log-probabilities in nats."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    spans: tuple[Span, ...] = ()
    """In order; several where weights were swapped while the response was being sampled."""


@dataclass(frozen=True)
class SampledToken:
    token_id: int
    logprob: float
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True)
class ReadBack:
    """What the engine says that it computes with, after comparing its own modules with the tensors on disk."""

    run: str | None
    """``None``: the base checkpoint."""
    version: int | None
    digest: str
    """SHA-256 over all tensors of the policy."""
    verified: int
    """Tensors of the checkpoint whose copy in the engine, packed or tied ones included, was found to be the same."""
    unverified: int
    """Tensors that could not be compared, those of a model split over several GPUs for example."""
    mismatched: tuple[str, ...]
    """Modules that compute with something else."""


class Engine(Protocol):
    """Samples with one set of weights at a time.

    The caller sees to it that nothing is sampled during ``load``: it waits for what is, or holds it by ``paused``.
    """

    @property
    def name(self) -> Literal["vllm", "transformers"]:
        """The backend."""

    @property
    def failure(self) -> str | None:
        """Why the engine can do no more work; ``None`` while it can."""

    async def start(self) -> None:
        """Load the base checkpoint.

        Raises:
            EngineError: it did not start.
        """

    async def encode(self, shown: Shown) -> EncodedPrompt:
        """The processor call, compared with what the engine makes of the same prompt.

        Raises:
            Invalid: the prompt is longer than the engine takes or has too many images.
            ImageMismatch: the engine sees other image tokens or pixels.
        """

    async def sample(self, prompt: EncodedPrompt, params: SampleParams, seeds: Sequence[int]) -> list[Sampled]:
        """One response for each seed."""

    def stream(self, prompt: EncodedPrompt, params: SampleParams, seed: int) -> AsyncGenerator[SampledToken, None]:
        """One response, token by token. Closing the iterator ends the sampling."""

    @property
    def paused(self) -> Callable[[], AbstractAsyncContextManager[None]] | None:
        """Holds the responses that are being sampled for the length of the body; ``None``: this engine cannot.

        They go on after it with the tokens they have, everything cached recomputed under the weights that the engine
        holds then, and their spans tell of it.

        Raises:
            SwapFailed: the engine did not stop, or did not go on, in ``swap_timeout_s``; it is of no more use.
        """

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        """Swap to ``weights`` in place (``None``: the base), reset what was cached under the old, and read back.

        Raises:
            SwapFailed: the engine does not compute with ``weights``.
        """

    async def perturb(self, seed: int, *, adapter: bool = False) -> ReadBack:
        """Swap to the base with noise on every tensor, or with an adapter of noise, for the self-test; ``load(None)``
        swaps back."""

    async def read_back(self) -> ReadBack:
        """Compare the engine's modules with the weights that it should hold."""

    async def close(self) -> None:
        """Stop; nothing of the engine is left running."""


def gone(engine: Engine) -> Unavailable:
    return Unavailable(f"the engine stopped: {engine.failure}; the service is about to restart", retry_after_s=10)
