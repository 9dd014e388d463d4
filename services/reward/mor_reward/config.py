"""Settings of the reward service: environment variables ``MOR_*``, command-line options of ``mor-reward serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.images import MAX_BYTES
from mor_core.settings import ServiceSettings
from mor_core.wire import Asks, Limits
from pydantic import Field, model_validator


class RewardSettings(ServiceSettings):
    """Settings of a reward service."""

    model_dir: Path | None = None
    """Folder written by ``mor-reward train``; give this or ``function``."""
    function: str | None = None
    """Python function to serve instead of a trained model, as ``file.py:name``."""
    name: str | None = None
    """Name on the card; by default the name of the trained model or the function."""
    domains: str | None = None
    """Topics that the model can judge, as free text for the card; by default those of the trained model."""
    asks_domains: tuple[str, ...] | None = None
    """Domain labels of the prompts that this service wishes to be sent, for the card, as JSON: ``["medical"]``. A
    router sends no others. Null: whatever the router's operator allows."""
    asks_public_only: bool = False
    """Wish on the card to be sent only prompts whose source the router's operator has marked as public."""
    disclosure: Literal["coarse", "full"] = "coarse"
    """What card and answers say beside the scores. ``coarse``: rounded figures of calibration, an id for each caller in
    place of the model's version, and reasons of failures in one sentence; ``full``: all, exactly."""
    answer_step_ms: int = Field(0, ge=0, le=60_000)
    """Answers to score requests leave at multiples of this time, milliseconds, so that they do not tell load and cached
    pictures; one that would come too late for the caller leaves at once. 0: when they are ready."""
    max_items: int = Field(64, ge=1)
    """Maximum items in a request; a larger request gets 413."""
    max_responses: int = Field(64, ge=1)
    """Maximum responses of an item; a larger item gets 413."""
    max_image_bytes: int = Field(MAX_BYTES, ge=1, le=MAX_BYTES)
    """Maximum bytes of one encoded picture, on the card; an item with a larger picture is unscorable."""
    concurrency: int = Field(16, ge=1)
    """Score requests processed at a time; further requests get 429 with Retry-After."""
    queue_responses: int = Field(4096, ge=1)
    """Responses that may wait for the model; a request that does not fit gets 429 with Retry-After."""
    batch_responses: int = Field(128, ge=1)
    """Maximum responses in one pass of the model."""
    batch_wait_ms: float = Field(3.0, ge=0)
    """Milliseconds that a partly filled pass waits for further requests."""
    image_cache_bytes: int = Field(256 << 20, ge=0)
    """Size of the picture cache in bytes; a caller need not send cached pictures again."""
    feature_cache_bytes: int = Field(256 << 20, ge=0)
    """Size of the cache of frozen encoder features in bytes; a cached picture is not encoded again."""
    encode_timeout_s: float = Field(30.0, gt=0)
    """Longest encoding of an item, seconds; an item that takes longer is an error, and the others wait for as long. The
    service is not ready while 8 such encodings have not ended."""
    threads: int = Field(1, ge=1)
    """CPU threads of one pass of the model."""
    device: str = "cpu"
    """Torch device of the model: ``cpu``, ``cuda``, ``cuda:1``."""

    @model_validator(mode="after")
    def _one_model(self) -> RewardSettings:
        if (self.model_dir is None) == (self.function is None):
            raise ValueError("give exactly one of MOR_MODEL_DIR (--model) and MOR_FUNCTION (--function)")
        return self

    @property
    def asks(self) -> Asks | None:
        """Wish for the card; null without one."""
        if self.asks_domains is None and not self.asks_public_only:
            return None
        return Asks(domains=self.asks_domains, public_only=self.asks_public_only)

    @property
    def limits(self) -> Limits:
        return Limits(
            items=self.max_items,
            responses=self.max_responses,
            request_bytes=self.max_request_bytes,
            image_bytes=self.max_image_bytes,
            concurrency=self.concurrency,
        )
