"""Protocol of the sampling engine, and the values that pass through it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mor_core.errors import MorError, Unavailable
from mor_core.wire import Message
from PIL import Image

from mor_rollout.weights.pull import PreparedWeights


class EngineError(MorError):
    """The engine failed. Sampling may be tried again unless ``Engine.failure`` is set."""


class ImageMismatch(MorError):
    """The engine received other image tokens or pixels than the processor produced."""


class SwapFailed(EngineError):
    """The engine does not compute with the weights it was given."""


@dataclass(frozen=True)
class EnginePrompt:
    """Processed prompt, ready for the engine that encoded it."""

    token_ids: tuple[int, ...]
    image_tokens: int
    """Number of image placeholders in ``token_ids``."""
    pixels: str | None
    """``mor_core.pixel_hash.pixel_sha256`` of the processed pixel values."""
    engine_input: Any = field(repr=False)
    """The prompt in the engine's own type."""


@dataclass(frozen=True)
class PromptInput:
    """Prompt before processing."""

    messages: tuple[Message, ...]
    images: dict[str, Image.Image]
    """Decoded images by SHA-256, all that ``messages`` name."""


@dataclass(frozen=True)
class SampleParams:
    """Parameters of the sampling distribution, see ``mor_core.sampling``."""

    max_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True)
class VersionSpan:
    """Part of a response that one weights version sampled."""

    version: int | None
    """``None``: the base checkpoint."""
    first: int
    """Index of its first token. It ends where the next span begins."""


@dataclass(frozen=True)
class SampledResponse:
    """Sampled response: token ids with the stop token, and their log-probabilities in nats."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: Literal["stop", "length"]
    spans: tuple[VersionSpan, ...] = ()
    """In order. There are several if weights were swapped while the response was sampled."""


@dataclass(frozen=True)
class SampledToken:
    """One token of a streamed response."""

    token_id: int
    logprob: float
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True)
class ReadBack:
    """Result of comparing the engine's modules with the weights that it should hold."""

    run: str | None
    """``None``: the base checkpoint."""
    version: int | None
    digest: str
    """SHA-256 over all tensors of the policy."""
    verified: int
    """Tensors of the policy whose copy in the engine is the same, packed and tied ones included."""
    unverified: int
    """Tensors that could not be compared, for example those of a model that is split over several GPUs."""
    mismatched: tuple[str, ...]
    """Modules that hold other values."""


class Engine(Protocol):
    """Sampling engine that holds one set of weights at a time.

    The caller guarantees that nothing is sampled during ``load``: it waits for running responses or pauses them.
    """

    @property
    def name(self) -> Literal["vllm", "transformers"]:
        """Name of the backend."""

    @property
    def failure(self) -> str | None:
        """Reason why the engine cannot continue; ``None`` while it works."""

    async def start(self) -> None:
        """Load the base checkpoint.

        Raises:
            EngineError: the engine did not start.
        """

    async def encode(self, prompt: PromptInput) -> EnginePrompt:
        """Process a prompt and compare the result with the engine's own encoding of it.

        Raises:
            Invalid: the prompt is too long for the engine or has too many images.
            ImageMismatch: the engine makes other image tokens or pixels.
        """

    async def sample(self, prompt: EnginePrompt, params: SampleParams, seeds: Sequence[int]) -> list[SampledResponse]:
        """Sample one response for each seed."""

    def stream(self, prompt: EnginePrompt, params: SampleParams, seed: int) -> AsyncGenerator[SampledToken, None]:
        """Sample one response token by token. Closing the iterator stops the sampling."""

    @property
    def paused(self) -> Callable[[], AbstractAsyncContextManager[None]] | None:
        """Context manager that pauses running responses; ``None`` if the engine cannot pause.

        After the body the responses continue from the tokens they have. Cached keys and values are recomputed under
        the weights that the engine holds then, and a new span records the version.

        Raises:
            SwapFailed: the engine did not pause or resume within ``swap_timeout_s``; it cannot be used any more.
        """

    async def load(self, weights: PreparedWeights | None) -> ReadBack:
        """Swap to ``weights`` in place (``None``: the base checkpoint), empty the caches and read back.

        Raises:
            SwapFailed: the engine does not compute with ``weights``.
        """

    async def perturb(self, seed: int, *, adapter: bool = False) -> ReadBack:
        """Swap to the base checkpoint plus noise on every tensor, or plus an adapter of noise.

        Only the self-test does this. ``load(None)`` swaps back.
        """

    async def read_back(self) -> ReadBack:
        """Compare the engine's modules with the weights that it should hold."""

    async def close(self) -> None:
        """Stop the engine and its processes."""


def engine_stopped(engine: Engine) -> Unavailable:
    """Return the error for calls to an engine that has failed. A restart takes some ten seconds."""
    return Unavailable(f"the engine stopped: {engine.failure}; the service restarts, try again", retry_after_s=10)
