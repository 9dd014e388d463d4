"""Settings of the reward service: environment variables ``MOR_*``, command-line options of ``mor-reward serve``."""

from __future__ import annotations

from pathlib import Path

from mor_core.settings import ServiceSettings
from mor_core.wire import Limits
from pydantic import Field, model_validator


class RewardSettings(ServiceSettings):
    """How a reward model is served."""

    model_dir: Path | None = None
    """Folder that ``mor-reward train`` wrote; this or ``function``."""
    function: str | None = None
    """Python function to serve instead of a trained model, as ``file.py:name``."""
    name: str | None = None
    """Name on the card; the trained model's own, or the function's, otherwise."""
    domains: str | None = None
    """What the model knows about, in words, for the card; the trained model's own otherwise."""
    max_items: int = Field(64, ge=1)
    """Most items in a request; more are answered 413."""
    max_responses: int = Field(64, ge=1)
    """Most responses of an item; more are answered 413."""
    max_image_bytes: int = Field(16 << 20, ge=1)
    """Most bytes of one encoded picture; a larger one is answered 413."""
    concurrency: int = Field(16, ge=1)
    """Score requests worked on at a time; further ones are answered 429 with Retry-After."""
    queue_responses: int = Field(4096, ge=1)
    """Responses that may wait for the model; a request that does not fit is answered 429 with Retry-After."""
    batch_responses: int = Field(128, ge=1)
    """Most responses in one pass of the model."""
    batch_wait_ms: float = Field(3.0, ge=0)
    """Milliseconds that a pass which is not full waits for further requests."""
    image_cache_bytes: int = Field(256 << 20, ge=0)
    """Bytes of encoded pictures that are kept, so that a caller need not send them again."""
    feature_cache_bytes: int = Field(256 << 20, ge=0)
    """Bytes of features of frozen towers that are kept, so that a picture is encoded once."""
    threads: int = Field(1, ge=1)
    """Processor threads that a pass of the model uses."""
    device: str = "cpu"
    """Device of the model, as torch names it: ``cpu``, ``cuda``, ``cuda:1``."""

    @model_validator(mode="after")
    def _one_model(self) -> RewardSettings:
        if (self.model_dir is None) == (self.function is None):
            raise ValueError("give one of MOR_MODEL_DIR (--model) and MOR_FUNCTION (--function), not both and not none")
        return self

    @property
    def limits(self) -> Limits:
        return Limits(
            items=self.max_items,
            responses=self.max_responses,
            request_bytes=self.max_request_bytes,
            concurrency=self.concurrency,
        )
