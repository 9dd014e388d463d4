"""Settings of the reward service: environment variables ``MOR_*``, command-line options of ``mor-reward serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mor_core.images import MAX_BYTES
from mor_core.proxies import ProxyAddress
from mor_core.settings import ServiceSettings
from mor_core.wire import JsonObject, Limits
from pydantic import Field, model_validator


class RewardSettings(ServiceSettings):
    """Settings of a reward service."""

    model_dir: Path | None = None
    """Folder written by ``mor-reward train``; give this, ``function`` or ``upstream``."""
    function: str | None = None
    """Python function to serve instead of a trained model, as ``file.py:name``: one group a call, in several threads at
    a time, or an ``async def``."""
    upstream: Literal["openrlhf", "classify", "score", "rerank", "predict", "kserve", "chat", "verify"] | None = None
    """Protocol of a reward model that is served elsewhere, to be called instead of a trained model."""
    upstream_url: str | None = None
    """Address of the upstream, without the path of its calls."""
    upstream_model: str | None = None
    """Name of the model at the upstream."""
    upstream_key_file: Path | None = None
    """File with the upstream's bearer token; it is read for each call."""
    upstream_version: str | None = Field(None, max_length=200)
    """Version of the upstream's model; by default a hash of what the upstream says of it, renewed every minute."""
    upstream_options: JsonObject = Field(default_factory=dict)
    """Further settings of the protocol, as a JSON object."""
    upstream_proxy: ProxyAddress | None = None
    """HTTP proxy on the way to the upstream."""
    template: str | None = None
    """Checkpoint, as folder or hub name, whose chat template makes the upstream's texts; without it, plain text."""
    sees_pictures: bool = False
    """Send pictures to the upstream, where its protocol carries them."""
    calls_at_once: int = Field(32, ge=1, le=4096)
    """Calls of the function or the upstream at a time."""
    call_timeout_s: float = Field(60.0, gt=0)
    """Longest call of the function or the upstream, seconds; an earlier deadline of the caller is kept."""
    name: str | None = None
    """Name on the card; by default the name of the trained model or the function."""
    domains: str | None = None
    """Topics that the model can judge, as free text for the card; by default those of the trained model."""
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
        if sum(given is not None for given in (self.model_dir, self.function, self.upstream)) != 1:
            raise ValueError(
                "give exactly one of MOR_MODEL_DIR (--model), MOR_FUNCTION (--function) and MOR_UPSTREAM (--upstream)"
            )
        if (self.upstream is None) != (self.upstream_url is None):
            raise ValueError("MOR_UPSTREAM (--upstream) and MOR_UPSTREAM_URL (--upstream-url) go together")
        return self

    @property
    def limits(self) -> Limits:
        return Limits(
            items=self.max_items,
            responses=self.max_responses,
            request_bytes=self.max_request_bytes,
            image_bytes=self.max_image_bytes,
            concurrency=self.concurrency,
        )
